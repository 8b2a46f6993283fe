// The demo in a process of its own, and requests of every kind for its pages to show.

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

const START_MS = 60_000;
const ORGANIZATION = '/api/v2/organizations/11';

/** Starts `binary demo` on free ports. Resolves to its addresses and keys, and `stop`. */
export async function startDemo(binary) {
  const child = spawn(binary, ['demo', '--json', '--port', '0'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const stop = async () => {
    child.kill('SIGTERM');
    await ended;
  };
  const line = await new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error('the demo said nothing for a minute')), START_MS);
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the demo ended with ${code}`)));
    createInterface({ input: child.stdout }).once('line', (first) => {
      clearTimeout(late);
      resolve(first);
    });
  });
  child.stdout.resume();
  return { ...JSON.parse(line), stop };
}

let runs = 0;

/** Sends a request as a caller of the demo. */
function sender(demo) {
  const keys = Object.fromEntries(demo.callers.map(({ name, key }) => [name, key]));
  return async (caller, method, path, { body, headers = {}, expect } = {}) => {
    const response = await fetch(demo.gateway + path, {
      method,
      headers: {
        authorization: `Token ${keys[caller] ?? caller}`,
        ...(body && { 'content-type': 'application/json' }),
        ...headers,
      },
      body: body && JSON.stringify(body),
    });
    await response.arrayBuffer();
    if (expect && response.status !== expect) {
      throw new Error(`${method} ${path} was answered with ${response.status}, not ${expect}`);
    }
  };
}

/** Reads for so many rounds of a second, more and fewer of them by turns. */
export async function makeReads(demo, rounds) {
  const send = sender(demo);
  const paths = ['/11', '/12', '/11/usage', '/13', '/12/feature-controls', '/14', '', '/11/variables'];
  for (let round = 0; round < rounds; round++) {
    const many = 4 + Math.round(3 * Math.sin(round / 9));
    for (let number = 0; number < many; number++) {
      const caller = ['dashboard', 'provisioning', 'nightly-report'][(round + number) % 3];
      await send(caller, 'GET', `/api/v2/organizations${paths[(round * 3 + number) % paths.length]}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/** Hits, misses, refusals, writes, an answer from an idempotency key, a failing upstream, and writes in doubt. */
export async function makeTraffic(demo) {
  const run = ++runs;
  const send = sender(demo);
  const fault = async (method, path, kind, times = 1) => {
    const body = JSON.stringify({ method, path, times, kind });
    const response = await fetch(`${demo.sandbox}/sandbox/faults`, { method: 'POST', body });
    if (!response.ok) throw new Error(`the fault was not armed: ${await response.text()}`);
  };

  for (const id of [11, 11, 12, 13, 14, 15, 11, 12]) {
    await send('provisioning', 'GET', `/api/v2/organizations/${id}`, { expect: 200 });
    await send('dashboard', 'GET', `/api/v2/organizations/${id}`);
  }
  for (const path of ['', '/11/usage', '/12/usage', '/11/variables', '/11/payments', '/11/feature-controls']) {
    await send('provisioning', 'GET', `/api/v2/organizations${path}`);
    await send('nightly-report', 'GET', `/api/v2/organizations${path}`);
  }
  await send('a-key-that-nobody-has', 'GET', ORGANIZATION, { expect: 401 });
  await send('dashboard', 'GET', `${ORGANIZATION}/${'a-long-name-'.repeat(25)}`);
  await send('dashboard', 'GET', `${ORGANIZATION}/${encodeURIComponent('<b>\u202ehidden')}`);

  const variable = { name: `region${run}`, typeId: 2, value: 'eu' };
  await send('provisioning', 'POST', `${ORGANIZATION}/variables`, { body: variable, expect: 200 });
  const invitation = { email: 'ann@example.com', name: 'Ann', usersRoleId: 1 };
  for (const _ of [1, 2]) {
    await send('provisioning', 'POST', `${ORGANIZATION}/invite`, {
      body: invitation,
      headers: { 'idempotency-key': 'invite-ann' },
    });
  }

  await fault('GET', '/api/v2/organizations/14/usage', { answer: { status: 503 } }, 5);
  await send('provisioning', 'GET', '/api/v2/organizations/14/usage');

  // Nobody can look up what became of these, so they stay in doubt.
  for (const id of [11, 12]) {
    const path = `/api/v2/organizations/${id}/single-payment-create`;
    await fault('POST', path, { reset: { effect: true } }, 5);
    // An equal write in doubt would hold it, without a key of its own.
    const headers = { 'idempotency-key': `payment-${id}-${run}` };
    await send('provisioning', 'POST', path, { body: { priceId: 1 }, headers, expect: 502 });
  }
}
