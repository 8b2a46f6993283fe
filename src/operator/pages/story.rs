//! A record told in sentences: at the page of one request, and by `makegate audit show`.

use serde_json::{Map, Value};

use super::super::table::json_cell;
use super::titles::title_of;

/// A wait for quota that is shorter than this, in microseconds, is none that anybody feels.
const WAIT_MIN_US: u64 = 1_000;

/// `Intent, number 42`.
pub(crate) fn title(record: &Map<String, Value>) -> String {
    let kind = json_cell(record.get("kind"));
    let (first, rest) = (kind.get(..1).unwrap_or_default(), kind.get(1..).unwrap_or_default());
    format!("{}{rest}, number {}", first.to_uppercase(), json_cell(record.get("seq")))
}

/// What happened, who asked, what that took, and what is known of it.
pub(crate) fn sentences(record: &Map<String, Value>) -> Vec<String> {
    let told = ToldRecord(record);
    let mut sentences = vec![told.event()];
    match told.text("kind").as_deref() {
        Some("request") => sentences.extend(
            [told.origin(), told.recorded(), told.filler(), told.attempts(), told.size()].into_iter().flatten(),
        ),
        Some("intent") => sentences.extend([told.origin(), told.recorded()].into_iter().flatten()),
        Some("outcome") => sentences.extend([told.attempts(), told.size()].into_iter().flatten()),
        _ => {}
    }
    sentences
}

/// A record whose fields become words.
struct ToldRecord<'r>(&'r Map<String, Value>);

impl ToldRecord<'_> {
    fn text(&self, name: &str) -> Option<String> {
        Some(json_cell(self.0.get(name))).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    /// What happened, in a sentence.
    fn event(&self) -> String {
        let get = |name: &str| self.text(name);
        let who = get("caller").or_else(|| get("peer")).unwrap_or_else(|| "Somebody".to_owned());
        let asked = match (get("method"), get("path")) {
            (Some(method), Some(path)) => format!("{method} {path}"),
            (None, Some(path)) => path,
            (_, None) => "nothing that could be read".to_owned(),
        };
        let status = get("status").map_or_else(String::new, |status| format!(" with {status}"));
        let note = get("detail").map_or_else(String::new, |detail| format!(": {detail}"));
        match get("kind").as_deref() {
            Some("request") if get("refusal").is_some() => {
                format!("{who} asked for {asked} and was refused{status}: {}.", self.refusal())
            }
            Some("request") => {
                let from = match get("answer").as_deref() {
                    Some("hit") => "from memory",
                    Some("stale") => "from memory, past its time",
                    Some("replayed") => "as the same key was before",
                    Some("miss") => "by Make, and the answer was stored",
                    _ => "by Make",
                };
                format!("{who} asked for {asked} and was answered{status}, {from}.")
            }
            Some("intent") => format!("{who} asked for {asked}. This was on disk before anything went to Make."),
            Some("outcome") => {
                let refusal = get("refusal").map_or_else(String::new, |_| format!(": {}", self.refusal()));
                let answered = format!("{who} was answered{status}{refusal}");
                match get("outcome").as_deref() {
                    Some("done") => format!("It was done, and {answered}."),
                    Some("rejected") => format!("Make rejected it, and {answered}."),
                    Some("not-sent") => format!("It was not sent, and {answered}."),
                    Some("in-doubt") => {
                        format!("Nobody knows whether it took effect: it is in doubt, and {answered}.")
                    }
                    _ => format!("It ended, and {answered}."),
                }
            }
            Some("settlement") => {
                let by = get("operator").unwrap_or_else(|| "A look at Make".to_owned());
                let done = if get("outcome").as_deref() == Some("done") { "done" } else { "not done" };
                format!("{by} settled it as {done}{}.", note.replacen(": looked: ", ": ", 1))
            }
            Some("refusals") => {
                format!("{} refusals of {who} were counted, and have no record each.", get("count").unwrap_or_default())
            }
            _ => format!("{}{note}.", get("event").unwrap_or_else(|| "Something happened".to_owned())),
        }
    }

    /// `MG131 (The caller lacks the grant)`.
    fn refusal(&self) -> String {
        let code = self.text("refusal").unwrap_or_default();
        match title_of(&code) {
            "" => code,
            title => format!("{code} ({title})"),
        }
    }

    /// Where the request came from.
    fn origin(&self) -> Option<String> {
        let peer = self.text("peer")?;
        let with = match (self.text("key"), self.text("credential").as_deref()) {
            (_, Some("certificate")) => ", with a certificate".to_owned(),
            (_, Some("peer")) => String::new(),
            (Some(key), Some("token")) => format!(", with the token {key}"),
            (Some(key), _) => format!(", with the key {key}"),
            (None, _) => String::new(),
        };
        Some(format!("The request came from {peer}{with}."))
    }

    /// What the log may hold of its query and its body.
    fn recorded(&self) -> Option<String> {
        match (self.text("query"), self.text("fields")) {
            (Some(query), Some(fields)) => Some(format!("Recorded of its query: {query}, of its body: {fields}.")),
            (Some(query), None) => Some(format!("Recorded of its query: {query}.")),
            (None, Some(fields)) => Some(format!("Recorded of its body: {fields}.")),
            (None, None) => None,
        }
    }

    fn filler(&self) -> Option<String> {
        self.text("filled_by").map(|request| format!("Make had given this answer to the request {request}."))
    }

    /// How often it was sent, and how Make answered.
    fn attempts(&self) -> Option<String> {
        let waited = self.number("quota_wait_us").filter(|us| *us >= WAIT_MIN_US);
        let waited = waited.map(|us| format!("It waited {} for quota.", length(us)));
        let Some(attempts) = self.number("attempts") else { return waited };
        let how_often = times(attempts);
        let answered = match (self.number("upstream_status"), attempts) {
            (Some(status), 1) => format!("which answered {status}"),
            (Some(status), _) => format!("which answered {status} in the end"),
            (None, _) => "which did not answer".to_owned(),
        };
        let spent = match self.number("spent") {
            None => String::new(),
            Some(0) => "; it took no slot of the quota, because nothing reached Make".to_owned(),
            Some(spent) => {
                format!("; it took a slot of the quota {}, because the rest did not reach Make", times(spent))
            }
        };
        let sent = format!("It was sent to Make {how_often}, {answered}{spent}.");
        Some(waited.map_or_else(|| sent.clone(), |waited| format!("{waited} {sent}")))
    }

    /// How long it took, and how large the answer was.
    fn size(&self) -> Option<String> {
        let took = length(self.number("duration_us")?);
        Some(match self.number("bytes") {
            Some(1) => format!("It took {took}, and the answer has 1 byte."),
            Some(bytes) => format!("It took {took}, and the answer has {bytes} bytes."),
            None => format!("It took {took}."),
        })
    }
}

fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        more => format!("{more} times"),
    }
}

/// `800 µs`, `41.2 ms`, `7.5 s`, `3m 5s`, `26h 1m`: a length of time.
pub(crate) fn length(us: u64) -> String {
    let (seconds, minutes, hours) = (us / 1_000_000, us / 60_000_000, us / 3_600_000_000);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{minutes}m {}s", seconds % 60),
        _ => format!("{hours}h {}m", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(record: Value) -> String {
        let Value::Object(record) = record else { panic!() };
        sentences(&record).join(" ")
    }

    #[test]
    fn each_kind_of_record_is_told_in_sentences() {
        let asked = json!({"kind": "request", "caller": "a", "method": "GET", "path": "/x", "status": 200, "answer": "hit", "filled_by": "r0"});
        let hit =
            "a asked for GET /x and was answered with 200, from memory. Make had given this answer to the request r0.";
        assert_eq!(told(asked), hit);
        let refused = json!({"kind": "request", "peer": "10.0.0.7", "method": "GET", "path": "/x", "status": 401, "refusal": "MG999"});
        let no = "10.0.0.7 asked for GET /x and was refused with 401: MG999. The request came from 10.0.0.7.";
        assert_eq!(told(refused), no);
        let intent = json!({"kind": "intent", "caller": "a", "key": "12345678", "peer": "::1", "method": "PATCH", "path": "/x",
            "fields": {"name": "b"}, "query": {"q": 1}});
        let meant = "a asked for PATCH /x. This was on disk before anything went to Make. The request came from ::1, with the key \
                     12345678. Recorded of its query: {\"q\":1}, of its body: {\"name\":\"b\"}.";
        assert_eq!(told(intent), meant);
        let settled = json!({"kind": "settlement", "caller": "a", "operator": "anna", "outcome": "rejected", "detail": "no such invoice"});
        assert_eq!(told(settled), "anna settled it as not done: no such invoice.");
        let looked =
            json!({"kind": "settlement", "outcome": "done", "detail": "looked: GET /x answered 200, its name is b"});
        assert_eq!(told(looked), "A look at Make settled it as done: GET /x answered 200, its name is b.");
        let event = json!({"kind": "event", "event": "purge", "detail": "anna purged everything"});
        assert_eq!(told(event), "purge: anna purged everything.");
        let many = json!({"kind": "refusals", "caller": "a", "count": 70});
        assert_eq!(told(many), "70 refusals of a were counted, and have no record each.");
    }

    #[test]
    fn attempts_are_told_with_what_they_cost() {
        let of = |more: Value| {
            let mut record = json!({"kind": "outcome", "caller": "a", "outcome": "done", "status": 200});
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            told(record).replace("It was done, and a was answered with 200. ", "")
        };
        let once =
            of(json!({"attempts": 1, "upstream_status": 200, "quota_wait_us": 30, "duration_us": 800, "bytes": 1}));
        assert_eq!(once, "It was sent to Make once, which answered 200. It took 800 µs, and the answer has 1 byte.");
        let twice = of(json!({"attempts": 2, "spent": 1, "upstream_status": 404, "quota_wait_us": 2_500_000}));
        let told = "It waited 2.5 s for quota. It was sent to Make twice, which answered 404 in the end; it took a slot of the quota \
                    once, because the rest did not reach Make.";
        assert_eq!(twice, told);
        assert!(of(json!({"attempts": 3, "spent": 0})).contains("3 times, which did not answer; it took no slot"));
        assert_eq!(of(json!({"quota_wait_us": 90_000})), "It waited 90.0 ms for quota.");
        let lengths = [7, 41_230, 7_500_000, 185_000_000, 93_660_000_000].map(length);
        assert_eq!(lengths, ["7 µs", "41.2 ms", "7.5 s", "3m 5s", "26h 1m"]);
    }
}
