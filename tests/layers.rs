//! The layers of ARCHITECTURE.md, read from the sources: imports run one way, one place knows tract, one place prints.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

/// What the signatures of src/onnx may name beside the crate's own types.
const STANDARD: [&str; 13] =
    ["Arc", "Box", "Err", "Error", "HashMap", "Ok", "Option", "Path", "PathBuf", "Result", "Self", "String", "Vec"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of src/ with its path there, without comments and the content of strings.
struct File {
    path: String,
    code: String,
}

impl File {
    /// First part of the path: the module right below the crate.
    fn layer(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// Whether `super::` at its top means the crate.
    fn is_top(&self) -> bool {
        !self.path.contains('/') || self.path.matches('/').count() == 1 && self.path.ends_with("/mod.rs")
    }
}

fn sources() -> Vec<File> {
    let mut found = Vec::new();
    collect(&root().join("src"), &mut found);
    found.sort();
    let file = |path: PathBuf| File {
        code: code(&fs::read_to_string(&path).unwrap()),
        path: path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().replace('\\', "/"),
    };
    found.into_iter().map(file).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Rust without comments, and with strings and characters emptied.
fn code(text: &str) -> String {
    let comment = r"//[^\n]*|(?s:/\*.*?\*/)";
    let raw = r##"(?s:r#".*?"#)|r"[^"]*""##;
    let quoted = r#"(?s:"(?:[^"\\]|\\.)*")|'(?:[^'\\\n]|\\[^\n]{1,8}?)'"#;
    let skipped = Regex::new(&format!("(?:{comment})|(?:{raw})|(?:{quoted})")).unwrap();
    skipped.replace_all(text, " ").into_owned()
}

/// The modules from the lowest up, as ARCHITECTURE.md has them.
fn order() -> Vec<String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let line = text.split("Imports go to the left only:").nth(1).expect("ARCHITECTURE.md has the order of imports");
    let line = line.split('`').nth(1).unwrap();
    line.split('<').map(|m| m.trim().to_owned()).collect()
}

/// The modules of lib.rs, and where the names come from that it hands on.
fn exports(sources: &[File]) -> (BTreeSet<String>, BTreeMap<String, String>) {
    let lib = &sources.iter().find(|f| f.path == "lib.rs").unwrap().code;
    let modules = Regex::new(r"\bmod (\w+);").unwrap().captures_iter(lib).map(|c| c[1].to_owned()).collect();
    let mut names = BTreeMap::new();
    for uses in Regex::new(r"pub use (\w+)::([^;]+);").unwrap().captures_iter(lib) {
        for name in uses[2].trim_matches(['{', '}']).split(',') {
            names.insert(name.trim().to_owned(), uses[1].to_owned());
        }
    }
    (modules, names)
}

/// Names right below the crate that `file` refers to.
fn references(file: &File, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // A unit test may build what it tests with what stands above.
    let code = file.code.split("#[cfg(test)]\nmod tests {").next().unwrap();
    for one in Regex::new(r"\bcrate::(\w+)").unwrap().captures_iter(code) {
        found.insert(one[1].to_owned());
    }
    for group in Regex::new(r"\bcrate::\{").unwrap().find_iter(code) {
        let mut depth = 0;
        let mut name = String::new();
        for c in code[group.end()..].chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
            if c == ',' && depth == 0 {
                found.insert(std::mem::take(&mut name).split("::").next().unwrap().trim().to_owned());
            } else {
                name.push(c);
            }
        }
        found.insert(name.split("::").next().unwrap().trim().to_owned());
    }
    found.remove("");
    // The way round: `super::` from the top of a module.
    if file.is_top() {
        let above = Regex::new(r"\bsuper::(\w+)").unwrap();
        found.extend(above.captures_iter(code).map(|c| c[1].to_owned()).filter(|n| modules.contains(n)));
    }
    found
}

#[test]
fn imports_run_one_way() {
    let sources = sources();
    let (modules, names) = exports(&sources);
    let order = order();
    let listed: BTreeSet<String> = order.iter().cloned().collect();
    assert_eq!(modules, listed, "the modules of lib.rs, and those in the order of ARCHITECTURE.md");
    let rank = |module: &str| order.iter().position(|m| m == module).unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in
        sources.iter().filter(|f| !["lib.rs", "main.rs"].contains(&f.path.as_str()) && !f.path.ends_with("/tests.rs"))
    {
        for name in references(file, &modules) {
            let module = if modules.contains(&name) { &name } else { names.get(&name).unwrap_or(&name) };
            assert!(modules.contains(module), "src/{}: `crate::{name}` is in no module of lib.rs", file.path);
            seen += 1;
            if rank(module) > rank(file.layer()) {
                wrong.push(format!("src/{} imports crate::{name}", file.path));
            }
        }
    }
    assert!(seen > modules.len(), "only {seen} imports were found: the test reads too little");
    assert!(wrong.is_empty(), "against the order {}:\n{}", order.join(" < "), wrong.join("\n"));
}

#[test]
fn only_onnx_knows_tract() {
    let engine = Regex::new(r"\b(tract|prost)\w*").unwrap();
    let sources = sources();
    let inside = |f: &&File| f.layer() == "onnx";
    assert!(
        sources.iter().filter(inside).any(|f| engine.is_match(&f.code)),
        "src/onnx does not: the test reads too little"
    );
    let outside: Vec<&str> =
        sources.iter().filter(|f| !inside(f) && engine.is_match(&f.code)).map(|f| f.path.as_str()).collect();
    assert!(outside.is_empty(), "tract or prost in src/{}", outside.join(", src/"));
}

#[test]
fn no_public_signature_names_tract() {
    let sources = sources();
    let defined = Regex::new(r"\b(?:struct|enum|trait|type|const|static) (\w+)").unwrap();
    let own: BTreeSet<&str> = sources
        .iter()
        .flat_map(|f| defined.captures_iter(&f.code).map(|c| c.get(1).unwrap().as_str()))
        .chain(STANDARD)
        .collect();
    // A function up to its body, a type with its fields; fields and variants may themselves hold braces once.
    let signatures = Regex::new(
        r"(?x) \bpub\s+(?: (?:const\s+|unsafe\s+|async\s+)* fn [^{;]+
        | (?:struct|enum|trait|union) \s [^{;]* (?: \{ (?: [^{}] | \{[^{}]*\} )* \} )?
        | (?:type|const|static|use) \s [^;]+ )",
    )
    .unwrap();
    let path = Regex::new(r"\b[A-Z]\w*[a-z]\w*").unwrap();
    let engine = Regex::new(r"\b(tract|prost)\w*").unwrap();
    let variant = Regex::new(r"(?m)^    ([A-Z]\w*)\s*[({,]").unwrap();
    let mut read = 0;
    for file in sources.iter().filter(|f| f.layer() == "onnx") {
        for signature in signatures.find_iter(&file.code) {
            let text = signature.as_str();
            assert!(!engine.is_match(text), "src/{}: {text}", file.path);
            let variants: BTreeSet<&str> = variant.captures_iter(text).map(|c| c.get(1).unwrap().as_str()).collect();
            for name in path.find_iter(text).map(|m| m.as_str()) {
                let known = own.contains(name) || variants.contains(name);
                assert!(known, "src/{}: `{name}` is no type of this crate, in: {text}", file.path);
            }
            read += 1;
        }
    }
    assert!(read > 10, "only {read} signatures were found: the test reads too little");
}

#[test]
fn only_the_command_line_prints_and_reads_the_environment() {
    let talks = Regex::new(
        r"\b(?:e?print(?:ln)?|dbg)!|\bstd(?:out|err|in)\(\)|\bprocess::(?:exit|abort)|\benv::(?:vars?(?:_os)?|args(?:_os)?|home_dir|set_var)\b",
    )
    .unwrap();
    let sources = sources();
    assert!(sources.iter().any(|f| f.layer() == "cli" && talks.is_match(&f.code)), "the test reads too little");
    for file in sources.iter().filter(|f| f.layer() != "cli") {
        let found = talks.find(&file.code).map(|m| m.as_str());
        assert!(found.is_none(), "src/{}: {}", file.path, found.unwrap());
    }
}
