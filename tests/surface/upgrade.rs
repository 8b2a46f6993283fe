//! Logs of earlier versions.

use std::fs;
use std::path::Path;

use makegate::audit::{Brought, doubts_in, verify};

use crate::support::{ALL, ORG, Plan, new_dir};

/// A log of the first format, made once: later versions read, verify and go on with it.
#[tokio::test]
async fn a_log_of_format_1_is_read_and_gone_on_with() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-1");
    let report = verify(&golden, &Brought::default(), &mut |_, _| {}).unwrap();
    assert!(report.problems.is_empty(), "{report:#?}");
    assert_eq!((report.unproven, report.in_doubt), (0, 2), "{report:#?}");
    let doubts = doubts_in(&golden).unwrap();
    assert_eq!(doubts.len(), 2);
    let dir = new_dir();
    let audit = dir.path().join("audit");
    fs::create_dir(&audit).unwrap();
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, audit.join(path.file_name().unwrap())).unwrap();
    }
    let world = Plan::default().set("upstream", "look = false").start_in(dir).await;
    world.patch(ALL, ORG, r#"{"name":"Named anew"}"#).await.expect(200);
    assert_eq!(world.service.gate().log.doubts().count(), 2);
    assert_eq!(world.log().await.last().unwrap()["outcome"], "done");
}
