//! Tells the compiler which commit is built, for `makegate --version`.

use std::path::Path;
use std::process::Command;

/// `MAKEGATE_COMMIT` if the build sets it (in a container, without the repository); else what git says, in release builds. Debug
/// builds do not ask, because each commit would then compile everything again.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MAKEGATE_COMMIT");
    let given = std::env::var("MAKEGATE_COMMIT").ok().filter(|commit| !commit.is_empty());
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if release { described() } else { None });
    println!("cargo::rustc-env=MAKEGATE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// The commit of the work tree, with `-dirty` if files have changed since.
#[expect(clippy::disallowed_methods, reason = "a build waits for files")]
fn described() -> Option<String> {
    // A source archive may have been unpacked inside of another repository.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    // What is compiled, and what git moves with each commit and checkout.
    for part in ["src", "config", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={part}");
    }
    for part in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", part])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
