// Visits every operator page under every condition. Started by run.sh.

import { mkdir, rm } from 'node:fs/promises';
import path from 'node:path';
import { act } from './acts.mjs';
import { makeTraffic, startDemo } from './demo.mjs';
import { Visitor } from './pages.mjs';
import { CONDITIONS, conditionName, contextFor, launch, visit } from './visit.mjs';

const [binary, root, only] = process.argv.slice(2);
const artifacts = path.join(root, 'target', 'browser');
const tally = { passed: 0, failed: 0 };

function report(name, wrong) {
  tally[wrong.length === 0 ? 'passed' : 'failed'] += 1;
  if (wrong.length === 0) return;
  console.log(`FAILED ${name}`);
  for (const why of new Set(wrong)) console.log(`    ${why}`);
}

/** The picture of a page: `audit-caller-nobody.png`. */
function file(prefix, target) {
  const words = `${prefix}/${decodeURIComponent(target)}`.split(/[^A-Za-z0-9]+/).filter(Boolean);
  return `${words.join('-').slice(0, 80) || 'overview'}.png`;
}

async function visitAll(browser, demo, headers, condition, pages, prefix = '') {
  const context = await contextFor(browser, condition, headers);
  const folder = path.join(artifacts, `${condition.width}-${condition.scheme}`);
  await mkdir(folder, { recursive: true });
  for (const page of pages) {
    if (only && !page.path.includes(only)) continue;
    const wrong = await visit(context, condition, demo.operator, page, path.join(folder, file(prefix, page.path)));
    report(`${prefix}${page.path} at ${conditionName(condition)}`, wrong);
  }
  await context.close();
}

async function main() {
  const started = Date.now();
  await rm(artifacts, { recursive: true, force: true });
  const [browser, demo] = await Promise.all([launch(), startDemo(binary)]);
  try {
    const visitor = new Visitor(demo);
    const menu = (await visitor.menu()).map((target) => ({ path: target, status: 200 }));
    await visitAll(browser, demo, visitor.authorization, CONDITIONS[0], menu, 'empty');
    await makeTraffic(demo);
    const { pages, broken } = await visitor.discover();
    report('every link leads to an answer', broken);
    const closed = [{ path: '/', status: 401 }];
    // Two at a time: as many as a small machine has cores.
    const queue = [...CONDITIONS];
    const work = async () => {
      for (let condition = queue.shift(); condition; condition = queue.shift()) {
        await visitAll(browser, demo, visitor.authorization, condition, pages);
        await visitAll(browser, demo, undefined, condition, closed, 'closed');
      }
    };
    await Promise.all([work(), work()]);
    if (!only) await act(browser, visitor, report);
    const seconds = ((Date.now() - started) / 1000).toFixed();
    console.log(`${pages.length} pages under ${CONDITIONS.length} conditions in ${seconds} s; screenshots: ${artifacts}`);
  } finally {
    await demo.stop();
    await browser.close();
  }
}

await main();
console.log(`${tally.passed} passed, ${tally.failed} failed`);
process.exitCode = tally.failed === 0 && tally.passed > 0 ? 0 : 1;
