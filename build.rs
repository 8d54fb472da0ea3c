//! Puts the demo's model and clips into the binary: a table of names and bytes, empty without the feature `demo-files`.

use std::fmt::Write;
use std::path::Path;

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    // The libasound that is linked against may be of a newer system than the glibc that is asked for; the board has its own.
    if std::env::var_os("CARGO_FEATURE_MIC").is_some() {
        println!("cargo::rustc-link-arg-bins=-Wl,--allow-shlib-undefined");
    }
    println!("cargo::rerun-if-changed=models/kws-commands");
    let mut files = Vec::new();
    let root = std::path::absolute("models/kws-commands")?;
    if std::env::var_os("CARGO_FEATURE_DEMO_FILES").is_some() {
        for name in ["model.toml", "kws-commands.onnx"] {
            files.push(name.to_owned());
        }
        collect(&root, "demo", &mut files)?;
        files.sort();
    }
    let mut table = String::from("&[\n");
    for name in files {
        let path = root.join(&name);
        let _ = writeln!(table, "    ({name:?}, include_bytes!({:?})),", path.display().to_string());
    }
    table.push_str("]\n");
    let out = std::env::var("OUT_DIR").map_err(std::io::Error::other)?;
    std::fs::write(Path::new(&out).join("demo_files.rs"), table)
}

fn collect(root: &Path, folder: &str, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(root, &name, files)?;
        } else if name.ends_with(".flac") {
            files.push(name);
        }
    }
    Ok(())
}
