import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { it } from 'node:test';
import fc from 'fast-check';
import { parseSync } from 'oxc-parser';

/**
 * The regular expressions of this program itself backtrack, other than those that users write (packages/common/linear-regex.ts). Each is
 * matched against texts that it nearly fits, with one part of them repeated: in more than linear time, one such text would stop a process.
 */
const root = join(import.meta.dirname, '..');

/** Expressions for texts that no peer and no object decides, or that are short. */
const exempt: Readonly<Record<string, string>> = {
  'packages/cli/commands/authz.ts': 'names of policies, at most 253 characters each, in the command line tool',
  'packages/cli/commands/run.ts': 'the name of a program that the user starts',
  'packages/proxy/dns/name-table.ts': 'an address as Node.js writes it',
  'packages/control/galley/api/discovery.ts': 'versions of the kinds of this program',
  'packages/common/duration.ts': 'only for texts that the whole expression above it fits',
};

function expressionsIn(path: string): RegExp[] {
  const found: RegExp[] = [];
  const visit = (node: unknown): void => {
    if (typeof node !== 'object' || node === null) return;
    const { type, regex } = node as { readonly type?: unknown; readonly regex?: { readonly pattern: string; readonly flags: string } };
    if (type === 'Literal' && regex) found.push(new RegExp(regex.pattern, regex.flags.replace(/[gy]/g, '')));
    for (const child of Object.values(node)) visit(child);
  };
  visit(parseSync(path, readFileSync(path, 'utf8')).program);
  return found;
}

/** Texts that the expression fits; those of its letters where it cannot be turned round (assertions). */
function examplesOf(expression: RegExp): string[] {
  try {
    return fc.sample(fc.stringMatching(expression, { maxLength: 40 }), { numRuns: 3, seed: 1 });
  } catch {
    return [expression.source.replace(/[\\^$()[\]?*+|{}]/g, '').slice(0, 40)];
  }
}

/** Texts by how often one part of them is repeated. */
function attacksOn(expression: RegExp): ((count: number) => string)[] {
  const letters = new Set(expression.source.replace(/\\[dws]/gi, '0a ').replace(/[\\^$()[\]?*+|{}]/g, ''));
  const attacks = [...letters, 'a', '0', ' ']
    .slice(-8)
    .flatMap((letter) => [(count: number) => `\x00${letter.repeat(count)}\x00`, (count: number) => `${letter.repeat(count)}\x00`]);
  for (const example of examplesOf(expression))
    for (let from = 0; from < example.length; from += Math.ceil(example.length / 5))
      for (const length of [1, 3]) attacks.push((count) => `${example.slice(0, from)}${example.slice(from, from + length).repeat(count)}\x00`);
  return attacks;
}

/** Milliseconds of one match. */
function costOf(expression: RegExp, text: string): number {
  const { user } = process.cpuUsage();
  expression.test(text);
  return (process.cpuUsage().user - user) / 1_000;
}

/** Each a little more than the one before: what is exponential shows before it is long. What is quadratic takes 32,000,000 steps at the end. */
const sizes = Array.from({ length: 12 }, (_, i) => Math.round(16 * 1.76 ** i));
const maxMs = 40;

it('every regular expression takes linear time for texts that it nearly fits', () => {
  const files = readdirSync(join(root, 'packages'), { recursive: true, withFileTypes: true })
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => path.endsWith('.ts') && !/\.test\.ts$|\/(?:gen|node_modules)\//.test(path));
  const checked = new Set<string>();
  const slow: string[] = [];
  for (const path of files) {
    const file = relative(root, path);
    if (file in exempt) continue;
    for (const expression of expressionsIn(path)) {
      // Without repetition the cost of a match has a bound.
      if (checked.has(String(expression)) || !/[+*]|\{\d/.test(expression.source)) continue;
      checked.add(String(expression));
      search: for (const attack of attacksOn(expression))
        for (const size of sizes) {
          const text = attack(size);
          // Twice: the first match compiles, and a machine may be busy.
          if (costOf(expression, text) < maxMs || costOf(expression, text) < maxMs) continue;
          slow.push(`${file}: ${expression} for ${JSON.stringify(attack(3))}, repeated ${size} times`);
          break search;
        }
    }
  }
  assert.ok(checked.size > 100, `${checked.size} expressions were found`);
  assert.deepEqual(slow, []);
});
