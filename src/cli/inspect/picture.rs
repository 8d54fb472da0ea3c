//! The network as an SVG: rows from the input down, straight chains of small operators in one box.

use std::fmt::Write as _;

use super::layout::{BOX_WIDTH, Layout, layout};
use crate::graph::{Graph, NodeId, Op, Site, ValueId};

/// What a box is coloured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Runs once a clip.
    Prefix,
    /// Runs in every step.
    Suffix,
    /// Carries an adapter.
    Site,
    /// No gradient passes.
    NoGradient,
    /// Behind the loss, or for another output.
    Beside,
    /// An input or output of the model.
    End,
}

impl Part {
    fn class(self) -> &'static str {
        match self {
            Part::Prefix => "prefix",
            Part::Suffix => "suffix",
            Part::Site => "site",
            Part::NoGradient => "none",
            Part::Beside => "beside",
            Part::End => "end",
        }
    }
}

/// A box: a node of the file with the small ones behind it.
struct Piece {
    part: Part,
    title: String,
    shape: String,
    lines: Vec<String>,
    /// Indices of the boxes that it reads.
    from: Vec<usize>,
}

/// What the picture is of.
pub(super) struct Subject<'a> {
    pub(super) graph: &'a Graph,
    pub(super) logits: ValueId,
    pub(super) name: String,
    pub(super) chosen: &'a [Site],
    pub(super) rank: usize,
    pub(super) no_gradient: &'a [NodeId],
    /// A line below the name.
    pub(super) summary: String,
}

/// Draws the network.
pub(super) fn svg(subject: &Subject) -> String {
    let pieces = pieces(subject);
    let heights: Vec<f64> = pieces.iter().map(|p| 30.0 + 15.0 * p.lines.len() as f64).collect();
    let edges: Vec<Vec<usize>> = pieces.iter().map(|p| p.from.clone()).collect();
    let placed = layout(&edges, &heights);
    draw(subject, &pieces, &heights, &placed)
}

/// Whether a node is drawn as a line in the box before it.
fn small(op: &Op) -> bool {
    !matches!(
        op,
        Op::Conv(..)
            | Op::ConvTranspose(..)
            | Op::MatMul
            | Op::Gemm { .. }
            | Op::MaxPool(_)
            | Op::AveragePool(..)
            | Op::Foreign(_)
    )
}

fn pieces(s: &Subject) -> Vec<Piece> {
    let graph = s.graph;
    let mut needed = vec![false; graph.nodes.len()];
    for output in graph.outputs.iter().chain([&s.logits]) {
        graph.ancestors(*output).iter().enumerate().for_each(|(i, n)| needed[i] |= n);
    }
    let to_loss = graph.ancestors(s.logits);
    let mut adapted = vec![false; graph.values.len()];
    // Which box gives a value.
    let mut of: Vec<Option<usize>> = vec![None; graph.values.len()];
    let mut pieces: Vec<Piece> = Vec::new();
    for input in &graph.inputs {
        of[*input] = Some(pieces.len());
        pieces.push(end("input", graph, *input, Vec::new()));
    }
    for (id, node) in graph.nodes.iter().enumerate().filter(|(id, _)| needed[*id]) {
        let sites: Vec<&Site> = s.chosen.iter().filter(|site| site.node == id).collect();
        let behind = node.inputs.iter().any(|i| adapted[*i]);
        let part = match () {
            () if s.no_gradient.contains(&id) => Part::NoGradient,
            () if !sites.is_empty() => Part::Site,
            () if !to_loss[id] => Part::Beside,
            () if behind => Part::Suffix,
            () => Part::Prefix,
        };
        node.outputs.iter().for_each(|o| adapted[*o] = behind || !sites.is_empty());
        let mut from: Vec<usize> = Vec::new();
        for input in node.inputs.iter().filter_map(|i| of[*i]) {
            if !from.contains(&input) {
                from.push(input);
            }
        }
        let y = node.outputs[0];
        // A box takes up what only it feeds.
        let one = match from.as_slice() {
            [one] => Some(*one),
            _ => None,
        };
        let x = node.inputs.iter().copied().find(|i| of[*i].is_some());
        let alone = x.is_some_and(|x| graph.only_consumer(x).is_some() && x != s.logits);
        if let Some(one) = one.filter(|one| alone && small(&node.op) && *one >= graph.inputs.len())
            && (part == pieces[one].part || (part == Part::Suffix && pieces[one].part == Part::Site))
        {
            let piece = &mut pieces[one];
            let last = piece.lines.len() - 1;
            let tail = piece.lines[last].strip_prefix("then ").map(str::to_owned);
            match tail.filter(|t| t.len() + node.op_type.len() < 30) {
                Some(tail) => piece.lines[last] = format!("then {tail}, {}", node.op_type),
                None if piece.lines.len() < 5 => piece.lines.push(format!("then {}", node.op_type)),
                None => {}
            }
            piece.shape = shape(graph, y);
            node.outputs.iter().for_each(|o| of[*o] = Some(one));
            continue;
        }
        let mut lines = vec![shortened(&node.name, NAME)];
        for site in &sites {
            lines.push(format!("adapter: {} values at rank {}", thousands(site.parameters(s.rank)), s.rank));
        }
        node.outputs.iter().for_each(|o| of[*o] = Some(pieces.len()));
        pieces.push(Piece { part, title: title(graph, id), shape: shape(graph, y), lines, from });
    }
    for output in &graph.outputs {
        let from = of[*output].into_iter().collect();
        pieces.push(end("output", graph, *output, from));
    }
    pieces
}

fn end(what: &str, graph: &Graph, value: ValueId, from: Vec<usize>) -> Piece {
    let lines = vec![shortened(&graph.values[value].name, NAME)];
    Piece { part: Part::End, title: what.to_owned(), shape: shape(graph, value), lines, from }
}

/// Operator, with its kernel where it has one.
fn title(graph: &Graph, id: NodeId) -> String {
    let node = &graph.nodes[id];
    let (window, groups) = match &node.op {
        Op::Conv(window, groups) | Op::ConvTranspose(window, groups) => (window, *groups),
        Op::MaxPool(window) | Op::AveragePool(window, _) => (window, 1),
        _ => return node.op_type.clone(),
    };
    let mut text = format!("{} {}×{}", node.op_type, window.kernel[0], window.kernel[1]);
    if window.stride != [1, 1] {
        let _ = write!(text, " /{}", window.stride.iter().max().unwrap_or(&1));
    }
    if groups > 1 {
        text += if graph.values[node.inputs[1]].shape.get(1) == Some(&1) { " depthwise" } else { " grouped" };
    }
    text
}

fn shape(graph: &Graph, value: ValueId) -> String {
    graph.values[value].shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×")
}

fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let head: String = text.chars().take(most / 3).collect();
    let tail: String = text.chars().skip(count - (most - most / 3 - 1)).collect();
    format!("{head}…{tail}")
}

/// 12345 as 12,345.
pub(super) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Colours for a light page, and for a dark one.
const STYLE: &str = "\
.page{fill:#ffffff}text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.big{font-size:17px;font-weight:600}.title{font-size:12.5px;font-weight:600}.small{font-size:11px;fill:#59636e}\
.shape{font-size:11px;fill:#59636e;text-anchor:end}.edge{fill:none;stroke:#8c959f;stroke-width:1.4}\
.prefix{fill:#eef1f4;stroke:#c4ccd4}.suffix{fill:#ddf0ff;stroke:#80bdf0}.site{fill:#d9f5df;stroke:#2da44e;stroke-width:1.8}\
.none{fill:#ffe3e0;stroke:#d1242f;stroke-width:1.8}.beside{fill:#ffffff;stroke:#c4ccd4;stroke-dasharray:4 3}\
.end{fill:#fff8dc;stroke:#c9a227}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e6edf3}.small,.shape{fill:#9aa5b1}.edge{stroke:#6e7681}\
.prefix{fill:#1c2128;stroke:#444c56}.suffix{fill:#10243a;stroke:#2f6fab}.site{fill:#12301c;stroke:#3fb950}\
.none{fill:#3d1513;stroke:#f85149}.beside{fill:#0d1117;stroke:#444c56}.end{fill:#2d2508;stroke:#9e7f1a}}";

/// Letters of a name that a box has room for.
const NAME: usize = 36;
/// Room above the network.
const HEAD: f64 = 96.0;
const MARGIN: f64 = 24.0;

fn draw(s: &Subject, pieces: &[Piece], heights: &[f64], placed: &Layout) -> String {
    let legend: Vec<(Part, &str)> = [
        (Part::Prefix, "once a clip"),
        (Part::Suffix, "every step"),
        (Part::Site, "adapted"),
        (Part::NoGradient, "no gradient"),
        (Part::Beside, "not trained through"),
    ]
    .into_iter()
    .filter(|(part, _)| pieces.iter().any(|p| p.part == *part))
    .collect();
    let legend_width: f64 = legend.iter().map(|(_, text)| 34.0 + 6.6 * text.len() as f64).sum();
    let wide = placed.width.max(legend_width).max(7.0 * s.summary.chars().count() as f64);
    let (width, height) = (wide + 2.0 * MARGIN, placed.height + HEAD + MARGIN);
    let left = MARGIN + (wide - placed.width) / 2.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{0}\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n",
        escaped(&s.name)
    );
    let _ = writeln!(out, "<text class=\"big\" x=\"{MARGIN}\" y=\"32\">{}</text>", escaped(&s.name));
    let _ = writeln!(out, "<text class=\"small\" x=\"{MARGIN}\" y=\"52\">{}</text>", escaped(&s.summary));
    let mut x = MARGIN;
    for (part, text) in &legend {
        let _ = writeln!(
            out,
            "<rect class=\"{}\" x=\"{x:.0}\" y=\"64\" width=\"14\" height=\"14\" rx=\"3\"/>\
             <text class=\"small\" x=\"{:.0}\" y=\"75\">{text}</text>",
            part.class(),
            x + 20.0
        );
        x += 34.0 + 6.6 * text.len() as f64;
    }
    for way in &placed.ways {
        let mut path = String::new();
        for (i, (x, y)) in way.iter().enumerate() {
            let (x, y) = (x + left, y + HEAD);
            if i == 0 {
                let _ = write!(path, "M{x:.1} {y:.1}");
            } else {
                let (px, py) = (way[i - 1].0 + left, way[i - 1].1 + HEAD);
                let middle = (py + y) / 2.0;
                let _ = write!(path, "C{px:.1} {middle:.1} {x:.1} {middle:.1} {x:.1} {y:.1}");
            }
        }
        let _ = writeln!(out, "<path class=\"edge\" d=\"{path}\"/>");
    }
    for ((piece, (x, y)), height) in pieces.iter().zip(&placed.places).zip(heights) {
        let (x, y) = (x + left - BOX_WIDTH / 2.0, y + HEAD);
        let _ = writeln!(
            out,
            "<rect class=\"{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{BOX_WIDTH}\" height=\"{height:.1}\" rx=\"6\"/>\
             <text class=\"title\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"shape\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            piece.part.class(),
            x + 10.0,
            y + 19.0,
            escaped(&piece.title),
            x + BOX_WIDTH - 10.0,
            y + 19.0,
            piece.shape
        );
        for (i, line) in piece.lines.iter().enumerate() {
            let at = y + 34.0 + 15.0 * i as f64;
            let _ = writeln!(out, "<text class=\"small\" x=\"{:.1}\" y=\"{at:.1}\">{}</text>", x + 10.0, escaped(line));
        }
    }
    out + "</svg>\n"
}
