// The pictures of docs/pictures, from the demo: node pictures.mjs BINARY FOLDER. Started by pictures.sh.

import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { makeTraffic, startDemo } from './demo.mjs';
import { Visitor } from './pages.mjs';
import { contextFor, launch } from './visit.mjs';

const PICTURES = [
  ['overview', '/', 'light'],
  ['audit', '/audit', 'dark'],
];

const [binary, folder] = process.argv.slice(2);
await mkdir(folder, { recursive: true });
const [browser, demo] = await Promise.all([launch(), startDemo(binary)]);
try {
  await makeTraffic(demo);
  const visitor = new Visitor(demo);
  for (const [name, target, scheme] of PICTURES) {
    const context = await contextFor(browser, { width: 1280, scheme, script: true }, visitor.authorization);
    const page = await context.newPage();
    await page.goto(visitor.origin + target);
    await page.screenshot({ path: path.join(folder, `${name}.png`), clip: { x: 0, y: 0, width: 1280, height: 720 } });
    await context.close();
  }
} finally {
  await demo.stop();
  await browser.close();
}
