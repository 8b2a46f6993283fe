// The pictures of docs/pictures, from the demo: node pictures.mjs BINARY FOLDER. Started by pictures.sh.

import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { makeReads, makeTraffic, startDemo } from './demo.mjs';
import { Visitor } from './pages.mjs';
import { contextFor, launch } from './visit.mjs';

/** Its name, its page, its colours, its height. */
const PICTURES = [
  ['overview', '/', 'light', 1000],
  ['audit', '/audit', 'dark', 720],
];
/** So many seconds of traffic, for charts that show something. */
const SECONDS = 240;

const [binary, folder] = process.argv.slice(2);
await mkdir(folder, { recursive: true });
const [browser, demo] = await Promise.all([launch(), startDemo(binary)]);
try {
  await makeReads(demo, SECONDS);
  await makeTraffic(demo);
  const visitor = new Visitor(demo);
  for (const [name, target, scheme, height] of PICTURES) {
    const context = await contextFor(browser, { width: 1280, scheme, script: true }, visitor.authorization);
    const page = await context.newPage();
    await page.goto(visitor.origin + target);
    await page.screenshot({ path: path.join(folder, `${name}.png`), fullPage: true, clip: { x: 0, y: 0, width: 1280, height } });
    await context.close();
  }
} finally {
  await demo.stop();
  await browser.close();
}
