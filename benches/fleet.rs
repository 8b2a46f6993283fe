//! How many upstream requests a fleet causes: `cargo bench --bench fleet`. For an hour (of a simulated clock), ten
//! dashboards read the list of organizations and twenty organizations every minute from the sandbox, with Make's quota
//! of 60 a minute: directly, through makegate, and through makegate with options that reduce the number further. Every
//! figure is what the sandbox received.

#![allow(clippy::disallowed_methods, reason = "a benchmark may wait for files")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use makegate::clock::Clock;
use makegate::sandbox::{Sandbox, SandboxSettings, Seed};
use makegate::service::Service;
use makegate::{config, hash};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use common::{Fallible, message};

const DASHBOARDS: u64 = 10;
const ORGANIZATIONS: std::ops::Range<u64> = 101..121;
const MINUTES: u64 = 60;
const TOKEN: &str = "fleet-token-0123456789";
/// The columns that dashboards show differ.
const COLUMNS: [&str; 3] = ["", "?cols[]=id&cols[]=name", "?cols[]=name"];

/// The result of one hour.
#[derive(Default)]
struct Hour {
    reads: usize,
    /// Requests that reached the upstream.
    upstream: usize,
    /// Reads that waited for the upstream.
    waited: usize,
    /// Answers other than 200.
    refused: usize,
}

#[expect(clippy::print_stdout, reason = "a benchmark reports")]
fn main() -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!(
        "an hour of {DASHBOARDS} dashboards, each reading the list and {} organizations a minute",
        ORGANIZATIONS.count()
    );
    println!("{:<32}  {:>6}  {:>17}  {:>17}  {:>7}", "", "reads", "upstream requests", "reads that waited", "refused");
    for (name, cache) in [
        ("without makegate", None),
        ("makegate", Some("")),
        ("and cache.refresh_ahead", Some("cache.refresh_ahead = true")),
    ] {
        let hour = runtime.block_on(hour(cache))?;
        let Hour { reads, upstream, waited, refused } = hour;
        println!("{name:<32}  {reads:>6}  {upstream:>17}  {waited:>17}  {refused:>7}");
    }
    Ok(())
}

async fn hour(cache: Option<&str>) -> Fallible<Hour> {
    let clock = Clock::movable();
    let seeds = ORGANIZATIONS.map(|id| Seed::new(id, &format!("Organization {id}"))).collect();
    let settings = SandboxSettings {
        token: TOKEN.to_owned(),
        api_limit: 60,
        account_limit: 60,
        seed_organizations: seeds,
        ..SandboxSettings::default()
    };
    let sandbox = Sandbox::start("127.0.0.1:0".parse()?, settings, clock.clone()).await?;
    let dir = tempfile::tempdir()?;
    let service = match cache {
        None => None,
        Some(cache) => {
            let file = configured(dir.path(), sandbox.address(), cache)?;
            Some(Service::start(config::read(&file)?, clock.clone()).await?)
        }
    };
    let to = match &service {
        None => sandbox.address(),
        Some(service) => *service.gateway_addresses().first().ok_or("no gateway address")?,
    };
    let mut hour = Hour::default();
    for _ in 0..MINUTES {
        for (dashboard, columns) in (0..DASHBOARDS).zip(COLUMNS.iter().cycle()) {
            clock.advance(Duration::from_secs(60 / DASHBOARDS));
            let key = if service.is_some() { format!("dashboard-{dashboard}") } else { TOKEN.to_owned() };
            refresh(to, &key, columns, &mut hour).await?;
        }
    }
    hour.upstream = sandbox.received().len();
    if let Some(service) = service {
        service.shut_down().await;
    } else {
        hour.waited = hour.reads;
    }
    sandbox.stop().await;
    Ok(hour)
}

/// One dashboard's minute.
async fn refresh(to: SocketAddr, key: &str, columns: &str, hour: &mut Hour) -> Fallible<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let list = format!("/api/v2/organizations{columns}");
    for target in std::iter::once(list).chain(ORGANIZATIONS.map(|id| format!("/api/v2/organizations/{id}"))) {
        let request = format!("GET {target} HTTP/1.1\r\nhost: fleet\r\nauthorization: Token {key}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let answer = message(&mut stream).await?.ok_or("it hung up")?;
        hour.reads += 1;
        hour.waited += usize::from(answer.contains("makegate; fwd="));
        hour.refused += usize::from(!answer.starts_with("HTTP/1.1 200"));
    }
    // Refreshes ahead of time get the rest of the six seconds.
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(())
}

fn configured(dir: &Path, upstream: SocketAddr, cache: &str) -> Fallible<std::path::PathBuf> {
    let file = dir.join("makegate.toml");
    std::fs::write(dir.join("token"), TOKEN)?;
    std::fs::write(dir.join("operator"), "fleet-operator-key")?;
    let mut text = format!(
        "gateway.listen = \"127.0.0.1:0\"\naudit.dir = \"audit\"\n{cache}\n\
         operator = {{ listen = \"127.0.0.1:0\", key_file = \"operator\" }}\n\
         upstream = {{ url = \"http://{upstream}\", token_file = \"token\" }}\n"
    );
    for dashboard in 0..DASHBOARDS {
        let name = format!("dashboard-{dashboard}");
        let key = hash::hex(&hash::sha256(name.as_bytes()));
        text +=
            &format!("[[caller]]\nname = \"{name}\"\nkeys = [\"sha256:{key}\"]\ngrants = [\"organizations:read\"]\n");
    }
    std::fs::write(&file, text)?;
    Ok(file)
}
