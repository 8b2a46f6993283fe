//! Node's own HTTP/2 client, whose connection begins with the smallest window that there is.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::still;
use super::unread::unread;
use crate::support::{ALL, ORG, tls};

/// Asks with a head that is far too large, for the head alone too, and then for something else on the same connection.
const SCRIPT: &str = r#"
const [url, path, key] = process.argv.slice(1);
const session = require('http2').connect(url, { rejectUnauthorized: false, maxSendHeaderBlockLength: 1 << 20 });
const large = { x: 'e'.repeat(70000) };
const ask = (method, more) => new Promise((resolve, reject) => {
  const stream = session.request({ ':method': method, ':path': path, authorization: `Token ${key}`, ...more });
  const answer = { status: 0, type: null, body: '' };
  stream.setEncoding('utf8');
  stream.on('response', (head) => { answer.status = head[':status']; answer.type = head['content-type'] ?? null; });
  stream.on('data', (data) => { answer.body += data; });
  stream.on('close', () => resolve(answer));
  stream.on('error', reject);
  stream.end();
});
(async () => {
  const answers = [];
  for (const [method, more] of [['GET', large], ['HEAD', large], ['GET', large], ['GET', {}]]) answers.push(await ask(method, more));
  console.log(JSON.stringify(answers));
  session.close();
})();
"#;

#[tokio::test(flavor = "multi_thread")]
async fn node_is_told_why_its_head_is_too_large() {
    let (world, _roots) = tls::world(still(), "", &[]).await;
    let mut node = Command::new("node");
    node.args(["-e", SCRIPT, &format!("https://{}", world.gateway), ORG, ALL]);
    let output = match node.env("NODE_NO_WARNINGS", "1").stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: there is no node (apt-get install nodejs)");
            return;
        }
        run => run.unwrap(),
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Value = serde_json::from_str(&told)
        .unwrap_or_else(|error| panic!("{error}: {told}{}", String::from_utf8_lossy(&output.stderr)));
    let code = |at: usize| {
        let body = answers[at]["body"].as_str().unwrap();
        serde_json::from_str(body).map_or(Value::Null, |problem: Value| problem["code"].clone())
    };
    for at in [0, 2] {
        assert_eq!((&answers[at]["status"], code(at)), (&json!(431), json!("MG108")), "{answers}");
        assert_eq!(answers[at]["type"], "application/problem+json");
    }
    assert_eq!((&answers[1]["status"], &answers[1]["body"]), (&json!(431), &json!("")), "{answers}");
    assert_eq!(answers[3]["status"], 200, "the connection goes on: {answers}");
    assert_eq!(unread(&world, "gateway", "head-too-large").await, 3);
}
