import { closestName } from '@mizzen/common';
import type { Problem } from './resource.ts';
import type { Schema } from './schema.ts';

/**
 * Checks a value against a schema and names every field that does not fit. It reports unknown fields too, which JSON schema validators
 * do not, with the known field that was most likely meant.
 */
export function validate(value: unknown, schema: Schema, path = '', problems: Problem[] = []): Problem[] {
  if (problems.length >= maxProblems) return problems;
  if (schema['x-kubernetes-int-or-string']) {
    if (typeof value !== 'string' && !Number.isInteger(value)) problems.push(wrongType(path, 'a whole number or a string', value));
    return problems;
  }
  switch (schema.type) {
    case 'object':
      if (!isPlainObject(value)) problems.push(wrongType(path, 'an object', value));
      else validateObject(value, schema, path, problems);
      return problems;
    case 'array':
      if (!Array.isArray(value)) problems.push(wrongType(path, 'a list', value));
      else {
        if (schema.minItems !== undefined && value.length < schema.minItems) {
          problems.push({ code: 'invalid-value', path, message: `needs at least ${schema.minItems} ${schema.minItems === 1 ? 'entry' : 'entries'}` });
        }
        if (value.length > maxListEntries) {
          problems.push({ code: 'invalid-value', path, message: `has ${value.length} entries, more than ${maxListEntries}: split the object` });
          return problems;
        }
        if (schema.items) for (let i = 0; i < value.length; i++) validate(value[i], schema.items, `${path}[${i}]`, problems);
      }
      return problems;
    case 'string':
      if (typeof value !== 'string') problems.push(wrongType(path, 'a string', value));
      else validateEnum(value, schema, path, problems);
      return problems;
    case 'boolean':
      if (typeof value !== 'boolean') problems.push(wrongType(path, 'true or false', value));
      return problems;
    case 'integer':
    case 'number':
      if (typeof value !== 'number' || !Number.isFinite(value)) problems.push(wrongType(path, 'a number', value));
      else if (schema.type === 'integer' && !Number.isInteger(value)) problems.push(wrongType(path, 'a whole number', value));
      else if (schema.minimum !== undefined && value < schema.minimum)
        problems.push({ code: 'invalid-value', path, message: `${value} is below the minimum of ${schema.minimum}` });
      else if (schema.maximum !== undefined && value > schema.maximum)
        problems.push({ code: 'invalid-value', path, message: `${value} is above the maximum of ${schema.maximum}` });
      else validateEnum(value, schema, path, problems);
      return problems;
    default:
      return problems;
  }
}

/** Entries of one list. Every check goes through them, and what an argument list can hold is limited too. */
const maxListEntries = 20_000;

/** After so many problems a document is not what its writer thinks it is; more would only bury the first. */
const maxProblems = 50;

function validateObject(value: Readonly<Record<string, unknown>>, schema: Schema, path: string, problems: Problem[]): void {
  const properties = schema.properties ?? {};
  for (const [name, member] of Object.entries(value)) {
    const memberPath = path ? `${path}.${name}` : name;
    const known = Object.hasOwn(properties, name) ? properties[name] : undefined;
    if (known) {
      // An explicit null is how YAML and merge patches write "not set".
      if (member !== null || known.type === 'null') validate(member, known, memberPath, problems);
    } else if (schema.additionalProperties) validate(member, schema.additionalProperties, memberPath, problems);
    else if (!schema['x-kubernetes-preserve-unknown-fields'] && schema.properties) problems.push(unknownField(memberPath, name, Object.keys(properties)));
  }
  for (const name of schema.required ?? []) {
    if (value[name] === undefined || value[name] === null) {
      problems.push({
        code: 'missing-field',
        path: path ? `${path}.${name}` : name,
        message: `required field "${name}" is missing${path ? ` in ${path}` : ''}`,
      });
    }
  }
  for (const group of schema['x-mizzen-one-of'] ?? []) {
    const set = group.filter((name) => value[name] !== undefined && value[name] !== null);
    if (set.length > 1) problems.push({ code: 'invalid-value', path, message: `only one of ${set.join(', ')} may be set` });
  }
}

function validateEnum(value: string | number, schema: Schema, path: string, problems: Problem[]): void {
  if (!schema.enum || schema.enum.includes(value)) return;
  const near = typeof value === 'string' ? closestName(value, schema.enum.map(String)) : undefined;
  const allowed = schema.enum.filter((entry) => entry !== '').join(', ');
  problems.push({
    code: 'invalid-value',
    path,
    message: `${JSON.stringify(value)} is not allowed here${near ? `: did you mean "${near}"?` : ''} Allowed: ${allowed}`,
  });
}

function unknownField(path: string, name: string, known: readonly string[]): Problem {
  const near = closestName(name, known);
  const shown = known.length > 12 ? '' : ` Known here: ${[...known].sort().join(', ')}.`;
  return { code: 'unknown-field', path, message: `unknown field "${name}"${near ? `: did you mean "${near}"?` : `.${shown}`}` };
}

function wrongType(path: string, wanted: string, value: unknown): Problem {
  return { code: 'wrong-type', path, message: `must be ${wanted}, but is ${describeValue(value)}` };
}

function describeValue(value: unknown): string {
  if (value === null) return 'empty (null)';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'an object';
  const text = JSON.stringify(value) ?? String(value);
  return `${typeof value === 'string' ? 'the string' : typeof value === 'boolean' ? 'the boolean' : 'the number'} ${text.length > 40 ? `${text.slice(0, 37)}...` : text}`;
}

export function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
