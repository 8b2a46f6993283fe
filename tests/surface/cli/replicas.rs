//! What the commands for several replicas say where there is no database.

use std::fs;
use std::path::Path;

use super::{run, stderr, stdout};

/// A configuration whose database nobody serves.
fn configured(folder: &Path, section: &str) {
    for (file, text) in [("o", "an-operator-key-of-this-test"), ("t", "a-token-of-make-of-this-test")] {
        fs::write(folder.join(file), text).unwrap();
    }
    fs::write(folder.join("url"), "postgresql://makegate@127.0.0.1:1/makegate").unwrap();
    let text = format!(
        "operator.key_file = \"o\"\nupstream = {{ url = \"http://127.0.0.1:1\", token_file = \"t\" }}\n{section}"
    );
    fs::write(folder.join("makegate.toml"), text).unwrap();
}

#[test]
fn commands_for_replicas_say_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let command = |word: &str| run(folder.path(), &["replicas", word, "--config", "makegate.toml"]);
    let words = ["init", "status", "leave"];
    configured(folder.path(), "");
    for word in words {
        let told = stderr(2, &command(word));
        assert!(told.contains("makegate.toml has no [replicas]: add [replicas] with url_file"), "{word}: {told}");
    }
    configured(folder.path(), "[replicas]\nurl_file = \"url\"\nname = \"one\"\n");
    for word in ["init", "status"] {
        let told = stderr(1, &command(word));
        assert!(told.contains("cannot reach 127.0.0.1:1/makegate: "), "{word}: {told}");
    }
    assert!(!folder.path().join("replicas.key").exists(), "without a database nobody knows whether there is a key");
    let told = stderr(1, &command("leave"));
    assert!(told.contains("has not joined any replicas, or has left them"), "{told}");
    fs::write(folder.path().join("url"), "mysql://makegate@127.0.0.1/makegate").unwrap();
    for word in words {
        let told = stderr(2, &command(word));
        assert!(told.contains("replicas: the URL does not begin with postgresql://"), "{word}: {told}");
    }
}

#[test]
fn check_tells_what_a_replica_lacks() {
    let folder = tempfile::tempdir().unwrap();
    configured(folder.path(), "[replicas]\nurl_file = \"url\"\nname = \"one\"\nlease = \"5ms\"\nreserve = \"90%\"\n");
    let check = |more: &[&str]| run(folder.path(), &[&["check", "--config", "makegate.toml"], more].concat());
    let told = stdout(2, &check(&[]));
    assert!(told.contains("lease is out of range") && told.contains("90%"), "{told}");
    configured(folder.path(), "[replicas]\nurl_file = \"url\"\nname = \"one\"\n");
    let told = stdout(0, &check(&[]));
    assert!(told.contains("replicas.key"), "{told}");
    let told = stdout(2, &check(&["--online"]));
    assert!(told.contains("error: replicas: cannot reach 127.0.0.1:1/makegate: "), "{told}");
    assert!(told.contains("`makegate replicas init` makes it"), "{told}");
}

#[test]
fn a_folder_that_has_joined_is_not_served_alone() {
    let folder = tempfile::tempdir().unwrap();
    configured(folder.path(), "gateway.listen = \"127.0.0.1:0\"\n");
    fs::create_dir(folder.path().join("audit")).unwrap();
    fs::write(folder.path().join("audit/replica"), "makegate-7\n").unwrap();
    let told = stderr(2, &run(folder.path(), &["serve", "--config", "makegate.toml"]));
    assert!(told.contains("belongs to the replica makegate-7") && told.contains("makegate replicas leave"), "{told}");
}
