//! Logs of earlier versions.

use std::fs;
use std::path::Path;

use makegate::audit::{AuditorInput, doubts_in, verify};

use crate::support::{ALL, OPERATOR, ORG, Plan, new_dir, send};

/// A log of the first format, made once: later versions read, verify and go on with it.
#[tokio::test]
async fn a_log_of_format_1_is_read_and_gone_on_with() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-1");
    let report = verify(&golden, &AuditorInput::default(), &mut |_, _| {}).unwrap();
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
    // Where the log is, a journal of slots was: without one everything would count as sent.
    fs::write(audit.join("quota.slots"), "makegate-slots-1 another-boot\nX 1\n").unwrap();
    let world = Plan::default().set("upstream", "look = false").start_in(dir).await;
    world.patch(ALL, ORG, r#"{"name":"Named anew"}"#).await.expect(200);
    assert_eq!(world.service.gateway().log.doubts().count(), 2);
    assert_eq!(world.log().await.last().unwrap()["outcome"], "done");
    // Its writes are settled by the numbers of their intents, which their records do not name.
    let id = doubts[0].request;
    let (operator, key) = (world.service.operator_addresses()[0], format!("authorization: Bearer {OPERATOR}\r\n"));
    send(operator, "POST", &format!("/doubts/{id}"), &key, r#"{"as":"not-done"}"#).await.expect(200);
    assert_eq!(world.last_record().await["intent"], doubts[0].intent);
    let fits = |audit: &Path| {
        let report = verify(audit, &AuditorInput::default(), &mut |_, _| {}).unwrap();
        // The secret key is not among the golden files, so nobody introduced that of the new heads. Of the records none is wrong.
        assert!(report.problems.iter().all(|problem| problem.seq.is_none()), "{report:#?}");
    };
    let world = world.restart_after(fits).await;
    let left: Vec<u64> = world.service.gateway().log.doubts().list().iter().map(|doubt| doubt.intent).collect();
    assert_eq!(left, [doubts[1].intent]);
}
