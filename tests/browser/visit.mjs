// One page under one condition: opened, inspected, photographed.

import axe from 'axe-core';
import { chromium } from 'playwright-core';
import { cutParts, focus, namelessParts, untidyCells } from './inspect.mjs';

const TABS_MAX = 40;
const GRAVE = ['serious', 'critical'];

/** The widths at which everything is looked at, and those at which something may be cut all the same. */
const WIDTHS = [400, 1280];
const WIDTHS_BETWEEN = [480, 600, 767, 769, 1000, 1600];

/** How pages are looked at. */
export const CONDITIONS = WIDTHS.flatMap((width) =>
  ['light', 'dark'].flatMap((scheme) => [true, false].map((script) => ({ width, scheme, script }))),
);

export const conditionName = ({ width, scheme, script }) => `${width} px, ${scheme}${script ? '' : ', no script'}`;

/** The browser of the system. Root cannot have Chromium's own sandbox. */
export function launch() {
  const args = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args });
}

/** A browser context for a condition. Without `headers` it has no key. */
export async function contextFor(browser, { width, scheme, script }, headers) {
  const context = await browser.newContext({
    viewport: { width, height: 900 },
    colorScheme: scheme,
    javaScriptEnabled: script,
    extraHTTPHeaders: headers,
  });
  context.setDefaultTimeout(30_000);
  return context;
}

/** Opens the page and returns what is wrong with it, as sentences. */
export async function visit(context, condition, origin, { path, status }, picture) {
  const page = await context.newPage();
  const wrong = [];
  page.on('request', (request) => {
    if (!request.url().startsWith(`${origin}/`)) wrong.push(`a request leaves the origin: ${request.url()}`);
  });
  page.on('pageerror', (error) => wrong.push(`a script failed: ${error.message}`));
  page.on('console', (message) => {
    // Chromium reports the status of a page that is a refusal, too.
    const isOwnStatus = status >= 400 && message.location().url === origin + path;
    if (['error', 'warning'].includes(message.type()) && !isOwnStatus) wrong.push(`on the console: ${message.text()}`);
  });
  if (status === 401) {
    // Without a screen Chromium has nobody to ask for the key, and shows nothing.
    await page.route(origin + path, async (route) => {
      const response = await route.fetch();
      const { 'www-authenticate': _, ...headers } = response.headers();
      await route.fulfill({ response, headers });
    });
  }
  try {
    const response = await page.goto(origin + path, { waitUntil: 'load' });
    if (response.status() !== status) wrong.push(`it answers ${response.status()}, not ${status}`);
    wrong.push(...(await page.evaluate(cutParts)), ...(await page.evaluate(namelessParts)));
    wrong.push(...(await page.evaluate(untidyCells)));
    if (condition.script) {
      wrong.push(...(await violations(page)));
      await page.screenshot({ path: picture, fullPage: true });
      if (condition.scheme === 'light') wrong.push(...(await hiddenFocus(page)));
      if (condition.scheme === 'light' && condition.width === WIDTHS[1]) wrong.push(...(await cutElsewhere(page)));
    }
  } catch (error) {
    wrong.push(error.message);
  }
  await page.close();
  return wrong;
}

async function violations(page) {
  // Evaluated by the debugger, because the page's policy lets no foreign script in.
  await page.evaluate(axe.source);
  const options = { resultTypes: ['violations'], preload: false };
  const { violations } = await page.evaluate((options) => globalThis.axe.run(document, options), options);
  return violations
    .filter(({ impact }) => GRAVE.includes(impact))
    .map(({ id, help, nodes }) => `axe ${id} (${help}): ${nodes.slice(0, 3).map(({ html }) => html.slice(0, 120)).join(' ')}`);
}

/** Goes through the page with the Tab key: what has the focus without showing it? */
async function hiddenFocus(page) {
  const [hidden, seen] = [[], new Set()];
  for (let tab = 0; tab < TABS_MAX; tab++) {
    await page.keyboard.press('Tab');
    const at = await page.evaluate(focus);
    if (!at || seen.has(at.id)) break;
    seen.add(at.id);
    if (!at.isVisible) hidden.push(`the focus cannot be seen on ${at.name}`);
  }
  if (seen.size === 0) hidden.push('the Tab key reaches nothing');
  return hidden;
}

async function cutElsewhere(page) {
  const found = [];
  for (const width of WIDTHS_BETWEEN) {
    await page.setViewportSize({ width, height: 900 });
    found.push(...(await page.evaluate(cutParts)).map((why) => `at ${width} px: ${why}`));
  }
  return found;
}
