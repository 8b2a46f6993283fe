//! The way to the engine: TLS with a certificate that is verified, authority and name.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::fleet::{DATABASE, Fleet, FleetPlan};
use crate::support::postgres::{Postgres, Shutdown};
use crate::support::process::binary;

/// Makes an authority and a certificate for these names.
fn certificate(dir: &Path, names: &[&str]) {
    let mut command = Command::new(binary());
    command.args(["cert", "new", "--dir"]).arg(dir);
    names.iter().for_each(|name| {
        command.args(["--name", name]);
    });
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lets the engine show the certificate in this folder from now on.
fn show(fleet: &mut Fleet, dir: &Path) {
    fleet.engine.stop(Shutdown::Fast);
    fleet.engine.use_tls(&fs::read(dir.join("cert.pem")).unwrap(), &fs::read(dir.join("key.pem")).unwrap());
    fleet.engine.start_again();
}

/// What `check --online` says.
fn online(fleet: &Fleet) -> (Option<i32>, String) {
    let config = fleet.replicas[0].home.path().join("makegate.toml");
    let output = Command::new(binary()).args(["check", "--online", "--config"]).arg(config).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_certificate_is_verified_authority_and_name() {
    if !Postgres::available() {
        return;
    }
    let engine = Postgres::start(&["fsync=on"]);
    engine.database(DATABASE);
    let plan = FleetPlan { replicas: 1, section: "ca_file = \"ca.pem\"", ..FleetPlan::default() };
    let mut fleet = plan.prepare(engine).await;
    let (right, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let home = fleet.replicas[0].home.path().to_owned();
    let address = fleet.engine.address();
    certificate(right.path(), &[&address.ip().to_string()]);
    certificate(other.path(), &["postgres.example"]);
    let url = Postgres::url_at(&[address], DATABASE);
    fs::write(home.join("engine"), format!("{url}?sslmode=verify-full")).unwrap();
    fs::copy(right.path().join("ca.pem"), home.join("ca.pem")).unwrap();

    show(&mut fleet, right.path());
    fleet.init();
    let (code, told) = online(&fleet);
    assert_eq!(code, Some(0), "{told}");
    fleet.replicas[0].start().await;
    fleet.settled().await;
    fleet.open().await;
    let plain = "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) \
                 where a.backend_type = 'client backend' and a.pid <> pg_backend_pid() and not s.ssl";
    let secret = "select count(*) from pg_stat_ssl where ssl";
    assert_eq!((fleet.sql(plain), fleet.sql(secret)), ("0".to_owned(), "4".to_owned()));
    assert_eq!(fleet.replicas[0].end(), Some(0));

    // Another authority's, and one for another name.
    show(&mut fleet, other.path());
    let (code, told) = online(&fleet);
    assert!(code == Some(2) && told.contains("invalid peer certificate"), "{told}");
    fs::copy(other.path().join("ca.pem"), home.join("ca.pem")).unwrap();
    let (code, told) = online(&fleet);
    assert!(code == Some(2) && told.contains("invalid peer certificate") && told.contains("name"), "{told}");
}
