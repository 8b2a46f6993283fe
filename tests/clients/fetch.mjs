// Node's fetch, with its own pool of connections: takes attempts as JSON on standard input, and prints an outcome for each.
import { readFileSync } from "node:fs";

const PIECE = 16 * 1024;
const SECONDS_MAX = 60;

function content(size, chunked) {
  const whole = Buffer.from(`{"name":"${"a".repeat(size - 11)}"}`);
  if (!chunked) return { body: whole };
  let start = 0;
  const body = new ReadableStream({
    pull(controller) {
      controller.enqueue(whole.subarray(start, start + PIECE));
      start += PIECE;
      if (start >= size) controller.close();
    },
  });
  return { body, duplex: "half" };
}

async function outcome({ framing, size, method, door, path, headers, good_path, good_headers }) {
  try {
    const signal = () => AbortSignal.timeout(SECONDS_MAX * 1000);
    const refused = await fetch(door + path, { method, headers, signal: signal(), ...content(size, framing === "chunked") });
    const body = await refused.text();
    const good = await fetch(door + good_path, { headers: good_headers, signal: signal() });
    await good.arrayBuffer();
    return { status: refused.status, kind: refused.headers.get("content-type") ?? "", body, good: good.status };
  } catch (error) {
    return { error: `${error}: ${error.cause?.code ?? ""} ${error.cause ?? ""}` };
  }
}

for (const attempt of JSON.parse(readFileSync(0, "utf8"))) {
  console.log(JSON.stringify(await outcome(attempt)));
}
