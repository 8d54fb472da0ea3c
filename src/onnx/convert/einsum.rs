//! Einsum as transpositions, reshapes and matrix products, two operands at a time from the left.
//!
//! Of two operands, a label in both that is still needed is a batch, one that is not is contracted, the others are
//! free; a label that is in one alone and not needed is summed first. With something to contract the pair is a MatMul
//! `[batch…, free a…, k] · [batch…, k, free b]`, else a product with broadcasting. A constant matrix becomes the weight of a
//! dense layer, and the file's own tensor where it is at most transposed.

use std::collections::HashMap;

use tract_onnx::pb::NodeProto;

use super::super::OnnxError;
use super::super::attributes::Attributes;
use super::{Converter, Source};
use crate::graph::{Op, ValueId};
use crate::ops::binary::BinaryKind;
use crate::ops::reduce::ReduceKind;

/// Labels of the dimensions behind an ellipsis, counted from the last one: characters that no equation has.
const ELLIPSIS: u32 = 0xE000;

/// An operand and the labels of its dimensions.
#[derive(Clone, Debug)]
struct Term {
    value: ValueId,
    labels: Vec<char>,
}

/// An equation taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Equation {
    inputs: Vec<Vec<char>>,
    output: Vec<char>,
}

impl Equation {
    /// `None` where it does not fit the ranks, or has a label twice in the output.
    fn parse(text: &str, ranks: &[usize]) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != ranks.len() {
            return None;
        }
        let mut widest = 0;
        let mut labels = |term: &str, rank: Option<usize>| -> Option<Vec<char>> {
            let (before, after) = match term.split_once("...") {
                Some((before, after)) => (before, Some(after)),
                None => (term, None),
            };
            let named = before.len() + after.map_or(0, str::len);
            let hidden = match (after, rank) {
                (None, Some(rank)) if named != rank => return None,
                (None, _) => 0,
                (Some(_), Some(rank)) => rank.checked_sub(named)?,
                (Some(_), None) => widest,
            };
            widest = widest.max(hidden);
            let behind = (0..hidden as u32).rev().filter_map(|i| char::from_u32(ELLIPSIS + i));
            let all: Vec<char> = before.chars().chain(behind).chain(after.unwrap_or("").chars()).collect();
            let plain = |c: &char| c.is_ascii_alphabetic() || *c as u32 >= ELLIPSIS;
            // Only an operand has a diagonal.
            let once = rank.is_some() || (1..all.len()).all(|i| !all[..i].contains(&all[i]));
            (once && all.iter().all(plain)).then_some(all)
        };
        let mut inputs = Vec::new();
        for (term, rank) in terms.iter().zip(ranks) {
            inputs.push(labels(term, Some(*rank))?);
        }
        let output = match right {
            Some(right) => labels(right, None)?,
            None => {
                let all: Vec<char> = inputs.iter().flatten().copied().collect();
                let mut hidden: Vec<char> = all.iter().copied().filter(|c| *c as u32 >= ELLIPSIS).collect();
                hidden.sort_unstable_by(|a, b| b.cmp(a));
                hidden.dedup();
                let single = |c: &char| c.is_ascii_alphabetic() && all.iter().filter(|o| *o == c).count() == 1;
                let mut named: Vec<char> = all.iter().copied().filter(single).collect();
                named.sort_unstable();
                hidden.extend(named);
                hidden
            }
        };
        let known = output.iter().all(|c| inputs.iter().any(|i| i.contains(c)));
        known.then_some(Self { inputs, output })
    }
}

impl Converter<'_> {
    /// Lowers Einsum; false if it must run through tract: a size of 1 that broadcasts.
    pub(super) fn lower_einsum(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        y: ValueId,
    ) -> Result<bool, OnnxError> {
        if node.op_type != "Einsum" {
            return Ok(false);
        }
        let present: Vec<ValueId> = inputs.iter().flatten().copied().collect();
        let text = Attributes(node).string("equation").unwrap_or_default();
        let ranks: Vec<usize> = present.iter().map(|v| self.shape(*v).len()).collect();
        // tract does not read every equation with an ellipsis as ONNX does: what is not lowered here must not run there.
        let elsewhere = || match text.contains("...") {
            true => {
                Err(self
                    .error(node, format!("equation `{text}` is not supported; export it with every label spelled out")))
            }
            false => Ok(false),
        };
        let Some(equation) = Equation::parse(text, &ranks) else { return elsewhere() };
        let mut sizes: HashMap<char, usize> = HashMap::new();
        for (value, labels) in present.iter().zip(&equation.inputs) {
            for (label, size) in labels.iter().zip(self.shape(*value)) {
                if *sizes.entry(*label).or_insert(size) != size {
                    return elsewhere();
                }
            }
        }
        let y_shape: Vec<usize> = equation.output.iter().map(|c| sizes[c]).collect();
        if y_shape != self.shape(y) {
            let what = format!(
                "equation `{text}` gives {y_shape:?}, and the loader takes it for {:?}; export it with every label spelled out",
                self.shape(y)
            );
            return Err(self.error(node, what));
        }
        let start = self.graph.nodes.len();
        let terms = present.iter().zip(&equation.inputs).map(|(v, l)| Term { value: *v, labels: l.clone() });
        let terms: Vec<Term> = terms.collect();
        let mut terms = terms.into_iter().map(|term| self.diagonal(node, name, term)).collect::<Vec<_>>().into_iter();
        let Some(mut term) = terms.next() else { return Ok(false) };
        let rest: Vec<Term> = terms.collect();
        for (i, next) in rest.iter().enumerate() {
            let later = rest[i + 1..].iter().flat_map(|t| &t.labels);
            let needed: Vec<char> = equation.output.iter().chain(later).copied().collect();
            let own = if i == 0 { name.to_owned() } else { format!("{name}~{i}") };
            term = self.contract(node, &own, term, next.clone(), &needed, &sizes);
        }
        term = self.summed(node, name, term, &equation.output, &sizes);
        term = self.arranged(node, name, term, &equation.output, &sizes);
        // What was written last is the output.
        match self.graph.nodes[start..].last_mut().filter(|n| n.outputs == [term.value]) {
            Some(last) => last.outputs = vec![y],
            None => self.push(node, name, Op::Reshape, vec![term.value], y),
        }
        Ok(true)
    }

    /// Adds a node that writes a new value.
    fn then(&mut self, node: &NodeProto, name: &str, op: Op, x: Vec<ValueId>, shape: Vec<usize>) -> ValueId {
        let like = x[0];
        let y = self.temporary(node, name, shape, like);
        self.push(node, name, op, x, y);
        y
    }

    /// The term with each label once: of two equal ones, the places where both have the same index. With those two
    /// last and joined, `[…, n·n]`, they are every (n + 1)th.
    fn diagonal(&mut self, node: &NodeProto, name: &str, mut term: Term) -> Term {
        let twice = |labels: &[char]| {
            (1..labels.len()).find_map(|i| Some((labels[..i].iter().position(|l| *l == labels[i])?, i)))
        };
        while let Some((first, second)) = twice(&term.labels) {
            let shape = self.shape(term.value);
            let mut perm: Vec<usize> = (0..shape.len()).filter(|d| ![first, second].contains(d)).collect();
            let mut labels: Vec<char> = perm.iter().map(|d| term.labels[*d]).collect();
            labels.push(term.labels[first]);
            let lead: Vec<usize> = perm.iter().map(|d| shape[*d]).collect();
            let n = shape[first];
            perm.extend([first, second]);
            let (square, line) = ([&lead[..], &[n, n]].concat(), [&lead[..], &[n * n]].concat());
            let turned = self.then(node, &format!("{name}~turn"), Op::Transpose(perm), vec![term.value], square);
            let joined = self.then(node, &format!("{name}~join"), Op::Reshape, vec![turned], line.clone());
            let mut steps = vec![1; line.len()];
            steps[lead.len()] = n as isize + 1;
            let cut = Op::Slice(vec![0; line.len()], steps);
            let value = self.then(node, &format!("{name}~diagonal"), cut, vec![joined], [&lead[..], &[n]].concat());
            term = Term { value, labels };
        }
        term
    }

    /// The term with every label summed that is not `needed`.
    fn summed(
        &mut self,
        node: &NodeProto,
        name: &str,
        term: Term,
        needed: &[char],
        sizes: &HashMap<char, usize>,
    ) -> Term {
        let axes: Vec<usize> = (0..term.labels.len()).filter(|i| !needed.contains(&term.labels[*i])).collect();
        if axes.is_empty() {
            return term;
        }
        let labels: Vec<char> = term.labels.into_iter().filter(|l| needed.contains(l)).collect();
        let shape = labels.iter().map(|l| sizes[l]).collect();
        let value = self.then(node, &format!("{name}~sum"), Op::Reduce(ReduceKind::Sum, axes), vec![term.value], shape);
        Term { value, labels }
    }

    /// The term with its dimensions in the order of `labels`; a constant is turned here.
    fn arranged(
        &mut self,
        node: &NodeProto,
        name: &str,
        term: Term,
        labels: &[char],
        sizes: &HashMap<char, usize>,
    ) -> Term {
        if term.labels == labels {
            return term;
        }
        let perm: Vec<usize> = labels.iter().filter_map(|l| term.labels.iter().position(|t| t == l)).collect();
        let shape: Vec<usize> = labels.iter().map(|l| sizes[l]).collect();
        let labels = labels.to_vec();
        let Some(values) = self.graph.values[term.value].values() else {
            let value = self.then(node, &format!("{name}~turn"), Op::Transpose(perm), vec![term.value], shape);
            return Term { value, labels };
        };
        let turned = crate::ops::movement::permuted(&values, &self.shape(term.value), &perm);
        let value = self.new_constant(node, name, shape, turned);
        if perm == [1, 0] {
            let behind = self.graph.values[term.value].source;
            self.graph.values[value].source = Some(Source {
                value: behind.map_or(term.value, |s| s.value),
                transposed: !behind.is_some_and(|s| s.transposed),
            });
        }
        Term { value, labels }
    }

    /// The value under another shape; a constant stays one.
    fn reshaped(&mut self, node: &NodeProto, name: &str, value: ValueId, shape: Vec<usize>) -> ValueId {
        if self.shape(value) == shape {
            return value;
        }
        match self.graph.values[value].values() {
            Some(values) => self.new_constant(node, name, shape, values.to_vec()),
            None => self.then(node, &format!("{name}~shape"), Op::Reshape, vec![value], shape),
        }
    }

    /// One term from two.
    fn contract(
        &mut self,
        node: &NodeProto,
        name: &str,
        a: Term,
        b: Term,
        needed: &[char],
        sizes: &HashMap<char, usize>,
    ) -> Term {
        // A product knows no order; a weight stands on the right.
        let (a, b) = if self.graph.is_constant(a.value) { (b, a) } else { (a, b) };
        let with = |other: &Term| -> Vec<char> { needed.iter().chain(&other.labels).copied().collect() };
        let (for_a, for_b) = (with(&b), with(&a));
        let a = self.summed(node, name, a, &for_a, sizes);
        let b = self.summed(node, name, b, &for_b, sizes);
        let shared = |l: &char| a.labels.contains(l) && b.labels.contains(l);
        let pick = |from: &Term, f: &dyn Fn(&char) -> bool| -> Vec<char> {
            from.labels.iter().copied().filter(|l| f(l)).collect()
        };
        let batch = pick(&a, &|l| shared(l) && needed.contains(l));
        let inner = pick(&a, &|l| shared(l) && !needed.contains(l));
        let (free_a, free_b) = (pick(&a, &|l| !shared(l)), pick(&b, &|l| !shared(l)));
        let size = |labels: &[char]| -> Vec<usize> { labels.iter().map(|l| sizes[l]).collect() };
        let product = |labels: &[char]| -> usize { size(labels).iter().product() };
        let labels = [&batch[..], &free_a, &free_b].concat();
        let a = self.arranged(node, name, a, &[&batch[..], &free_a, &inner].concat(), sizes);
        let b = self.arranged(node, name, b, &[&batch[..], &inner, &free_b].concat(), sizes);
        if inner.is_empty() {
            let a_shape = [size(&batch), size(&free_a), vec![1; free_b.len()]].concat();
            let b_shape = [size(&batch), vec![1; free_a.len()], size(&free_b)].concat();
            let (x, z) = (self.reshaped(node, name, a.value, a_shape), self.reshaped(node, name, b.value, b_shape));
            let value = self.then(node, name, Op::Binary(BinaryKind::Mul), vec![x, z], size(&labels));
            return Term { value, labels };
        }
        // With one matrix on the right the rows of a need not be joined.
        let rows = if batch.is_empty() { size(&free_a) } else { vec![product(&free_a)] };
        let (k, n) = (product(&inner), product(&free_b));
        let x = self.reshaped(node, name, a.value, [size(&batch), rows.clone(), vec![k]].concat());
        let z = self.reshaped(node, name, b.value, [size(&batch), vec![k, n]].concat());
        let value = self.then(node, name, Op::MatMul, vec![x, z], [size(&batch), rows, vec![n]].concat());
        Term { value: self.reshaped(node, name, value, size(&labels)), labels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, ranks: &[usize]) -> Option<(Vec<String>, String)> {
        let text_of = |labels: &Vec<char>| -> String {
            labels
                .iter()
                .map(|c| if *c as u32 >= ELLIPSIS { char::from(b'0' + (*c as u32 - ELLIPSIS) as u8) } else { *c })
                .collect()
        };
        Equation::parse(text, ranks).map(|e| (e.inputs.iter().map(text_of).collect(), text_of(&e.output)))
    }

    fn parsed(inputs: &[&str], output: &str) -> Option<(Vec<String>, String)> {
        Some((inputs.iter().map(|i| (*i).into()).collect(), output.into()))
    }

    #[test]
    fn equations_are_taken_apart() {
        assert_eq!(parse("bij, bjk -> bik", &[3, 3]), parsed(&["bij", "bjk"], "bik"));
        assert_eq!(parse("ij,jk", &[2, 2]), parsed(&["ij", "jk"], "ik"));
        assert_eq!(parse("...ij,jk->...ik", &[4, 2]), parsed(&["10ij", "jk"], "10ik"));
        assert_eq!(parse("...a,...b", &[2, 3]), parsed(&["0a", "10b"], "10ab"));
        assert_eq!(parse("ij->", &[2]), parsed(&["ij"], ""));
        for (text, ranks) in
            [("i->ii", &[1][..]), ("ij,jk->ik", &[2]), ("ij->ik", &[2]), ("ij->ij", &[3]), ("i1->i", &[2])]
        {
            assert_eq!(parse(text, ranks), None, "{text}");
        }
    }
}
