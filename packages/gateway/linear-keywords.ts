import { createRequire } from 'node:module';
import type { Ajv2020 } from 'ajv/dist/2020.js';
import { enumKeyword, namesKeyword, uniqueItemsKeyword, workKeyword } from './bounded-schema.ts';
import { charge, workLimits } from './work-budget.ts';

const require = createRequire(import.meta.url);

/** Adds what Ajv lacks or does in more than linear time: the charge for an evaluation, `uniqueItems`, long lists of `enum`, `contains`, and formats. */
export function addLinearKeywords(ajv: Ajv2020): void {
  // Charged before anything that the schema contains is evaluated.
  ajv.addKeyword({
    keyword: workKeyword,
    before: '$ref',
    validate: (weight: number) => {
      charge(weight);
      return true;
    },
    errors: false,
  });
  ajv.addKeyword({
    keyword: uniqueItemsKeyword,
    type: 'array',
    validate: (_schema: unknown, items: readonly unknown[]) => areUnique(items),
    errors: false,
    error: { message: 'must not have items twice' },
  });
  ajv.addKeyword({
    keyword: enumKeyword,
    compile(values: readonly unknown[]) {
      const known = new Set(values.map(canonical));
      return (value: unknown) => {
        const text = canonical(value);
        charge(1 + (text.length >> 6));
        return known.has(text);
      };
    },
    errors: false,
    error: { message: 'must be equal to one of the allowed values' },
  });
  ajv.addKeyword({
    keyword: namesKeyword,
    type: 'object',
    compile(names: readonly string[]) {
      const declared = new Set(names);
      const folded = new Set(names.map(folding));
      return (value: object) => {
        for (const name of Object.keys(value)) if (!declared.has(name) && folded.has(folding(name))) return false;
        return true;
      };
    },
    errors: false,
    error: { message: 'has a member whose name differs from a declared one by case alone' },
  });
  for (const keyword of ['contains', 'anyOf', 'oneOf']) limitErrors(ajv, keyword, keyword === 'contains' ? 0 : workLimits.maxErrors);
  const formats = require('ajv-formats') as { default: (ajv: unknown, options: { mode: 'fast' }) => void };
  // The full forms of some formats are backtracking expressions that take super-linear time.
  formats.default(ajv, { mode: 'fast' });
  // Also in this mode `url` is quadratic, and `byte` takes a text of which one line is base64.
  ajv.addFormat('url', /^(?:https?|ftp):\/\/[^\s/?#]+(?:[/?#]\S*)?$/i);
  ajv.addFormat('byte', /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/);
}

/** Names that a reader without regard to case, such as Go's `encoding/json`, takes for one. */
const folding = (name: string): string => name.toUpperCase().toLowerCase();

type CodeKeyword = Extract<ReturnType<Ajv2020['getKeyword']>, { readonly code: unknown }>;

/**
 * Has a keyword keep no more than so many errors of its subschemas. Ajv keeps them all until the keyword is done, and a `$ref` copies the whole
 * list: an item that `contains` does not find would cost more than the one before, and branches within branches would hold memory.
 */
function limitErrors(ajv: Ajv2020, keyword: string, max: number): void {
  const { _ } = require('ajv') as typeof import('ajv');
  const { default: names } = require('ajv/dist/compile/names.js') as typeof import('ajv/dist/compile/names.js');
  const definition = ajv.getKeyword(keyword) as CodeKeyword;
  ajv.removeKeyword(keyword);
  ajv.addKeyword({
    ...definition,
    keyword,
    code(context, ruleType) {
      const subschema = context.subschema.bind(context);
      context.subschema = (applied, valid) => {
        const evaluated = subschema(applied, valid);
        const limit = _`${context.errsCount} + ${max}`;
        context.gen.if(_`${names.errors} > ${limit}`, () => context.gen.assign(names.errors, limit).code(_`${names.vErrors}.length = ${names.errors}`));
        return evaluated;
      };
      definition.code(context, ruleType);
    },
  });
}

/** Whether no item equals another, in time linear in their size (JSON Schema, section 6.4.3). */
function areUnique(items: readonly unknown[]): boolean {
  const seen = new Set<string>();
  for (const item of items) {
    const text = canonical(item);
    charge(1 + (text.length >> 6));
    if (seen.has(text)) return false;
    seen.add(text);
  }
  return true;
}

/** Equal texts for equal values (JSON Schema, section 4.2.2). */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'undefined';
  const members = Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`);
  return `{${members.sort().join(',')}}`;
}
