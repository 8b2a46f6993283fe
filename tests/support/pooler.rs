//! PgBouncer before a PostgreSQL server.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::postgres::{FIRST_PORT, Keep, ROLE, command, free_address, program_in};
use super::process::own_ip;

/// PgBouncer before a server, in transaction mode. Dropped, it is gone.
pub(crate) struct Pooler {
    keep: Keep,
    address: SocketAddr,
    process: Child,
}

impl Pooler {
    /// Is PgBouncer installed here?
    pub(crate) fn available() -> bool {
        let found = program_in(&["/usr/sbin"], "pgbouncer").is_some();
        if !found {
            eprintln!("skipped: no PgBouncer here");
        }
        found
    }

    pub(crate) fn start(server: SocketAddr) -> Self {
        let keep = Keep::new("makegate-pooler-");
        let address = free_address(own_ip(), FIRST_PORT);
        let file = keep.dir.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={} user={ROLE}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = 20\n\
             ignore_startup_parameters = extra_float_digits\npidfile = {}\nlogfile = {}\n",
            server.ip(),
            server.port(),
            address.ip(),
            address.port(),
            keep.dir.join("pid").display(),
            keep.dir.join("log").display(),
        );
        std::fs::write(&file, text).unwrap();
        let mut pgbouncer = command(&program_in(&["/usr/sbin"], "pgbouncer").expect("PgBouncer"));
        let mut process = pgbouncer.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for _ in 0..1_200 {
            assert!(process.try_wait().unwrap().is_none(), "{:?}", std::fs::read_to_string(keep.dir.join("log")));
            if std::net::TcpStream::connect(address).is_ok() {
                break;
            }
            sleep(Duration::from_millis(50));
        }
        Self { keep, address, process }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.keep.end(Some(&mut self.process));
    }
}
