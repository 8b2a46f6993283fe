//! Which section of `docs/runbooks.md` says what to do about a problem. That file is not at hand everywhere, so each line of the overview
//! says the essence of it.

/// The section's heading, which is the name of the alert, too.
pub(super) fn runbook(problem: &str) -> Option<&'static str> {
    RUNBOOKS.iter().find(|(name, _)| *name == problem).map(|(_, heading)| *heading)
}

const RUNBOOKS: [(&str, &str); 22] = [
    ("token-refused", "MakegateTokenRefused"),
    ("upstream-down", "MakegateUpstreamDown"),
    ("upstream-unreachable", "MakegateUpstreamDown"),
    ("operations-silent", "MakegateOperationsPaused"),
    ("upstream-errors", "MakegateUpstreamErrors"),
    ("quota-spent", "MakegateQuotaSpent"),
    ("quota-closed", "MakegateQuotaClosed"),
    ("doubts", "MakegateDoubtOld"),
    ("doubts-nearly-full", "MakegateDoubtRoomNearlyFull"),
    ("log-outage", "MakegateLogNotWritable"),
    ("disk-nearly-full", "MakegateLogDiskNearlyFull"),
    ("certificate-ends", "MakegateCertificateExpires"),
    ("key-ends", "MakegateKeyExpires"),
    ("reload-failed", "MakegateReloadFailed"),
    ("log-lines-dropped", "MakegateLogLinesDropped"),
    ("replicas-engine", "MakegateEngineDown"),
    ("replicas-lease", "MakegateReplicaWithoutLease"),
    ("replicas-gone", "MakegateReplicaGone"),
    ("replicas-epoch", "MakegateEpochChanged"),
    ("replicas-clock", "MakegateEngineClockStepped"),
    ("replicas-unlike", "MakegateReplicasDiffer"),
    ("shipping-behind", "MakegateRecordsBehind"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_section_is_there_and_each_problem_has_its_name() {
        let runbooks = include_str!("../../../docs/runbooks.md");
        let lines = [
            include_str!("ends.rs"),
            include_str!("log.rs"),
            include_str!("process.rs"),
            include_str!("quota.rs"),
            include_str!("replicas.rs"),
            include_str!("upstream.rs"),
        ]
        .concat();
        for (problem, heading) in RUNBOOKS {
            assert!(runbooks.contains(&format!("\n## {heading}\n")), "{heading}");
            assert!(lines.contains(&format!("\"{problem}\"")), "{problem}");
        }
        assert_eq!(runbook("runs-as-root"), None);
    }
}
