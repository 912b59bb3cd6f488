import { isDeepStrictEqual } from 'node:util';
import { isPlainObject } from '@mizzen/api';
import { badRequest } from '../api-error.ts';
import { setOwn } from './merge-patch.ts';

const maxOperations = 10_000;
/** What all operations of one patch may copy, compare and move: characters as JSON, and entries of lists. A `copy` into itself doubles with each operation. */
const maxWork = 6 * 1024 * 1024;

/** JSON patch, RFC 6902. The document is not changed; a patch that cannot be applied is refused as a whole. */
export function jsonPatch(document: unknown, patch: unknown): unknown {
  if (!Array.isArray(patch)) throw badRequest('a JSON patch must be a list of operations (RFC 6902)');
  if (patch.length > maxOperations) throw badRequest(`a JSON patch may hold at most ${maxOperations} operations`);
  let result = structuredClone(document);
  let work = 0;
  const charge = (amount: number) => {
    work += amount;
    if (work > maxWork) throw badRequest(`a JSON patch may copy and compare at most ${maxWork} characters: split it`);
  };
  const chargeFor = (value: unknown) => charge(JSON.stringify(value)?.length ?? 0);
  for (const [i, operation] of patch.entries()) {
    if (!isPlainObject(operation) || typeof operation['path'] !== 'string') throw badRequest(`operation ${i}: an operation needs "op" and "path"`);
    const { op, path, value, from } = operation as { op: unknown; path: string; value: unknown; from: unknown };
    switch (op) {
      case 'add':
        result = add(result, path, structuredClone(value), charge);
        break;
      case 'remove':
        result = remove(result, path, charge);
        break;
      case 'replace':
        result = path === '' ? structuredClone(value) : replace(result, path, structuredClone(value));
        break;
      case 'move':
      case 'copy': {
        if (typeof from !== 'string') throw badRequest(`operation ${i}: "${op}" needs "from"`);
        if (op === 'move' && path.startsWith(`${from}/`)) throw badRequest(`operation ${i}: ${from} cannot be moved into itself`);
        const found = get(result, from);
        if (op === 'move') {
          result = add(remove(result, from, charge), path, found, charge);
          break;
        }
        chargeFor(found);
        result = add(result, path, structuredClone(found), charge);
        break;
      }
      case 'test':
        chargeFor(get(result, path));
        if (!isDeepStrictEqual(get(result, path), value)) throw badRequest(`operation ${i}: test of ${path || 'the document'} failed`);
        break;
      default:
        throw badRequest(`operation ${i}: unknown op ${JSON.stringify(op)}`);
    }
  }
  return result;
}

/** RFC 6901. */
function tokensOf(pointer: string): string[] {
  if (pointer === '') return [];
  if (!pointer.startsWith('/')) throw badRequest(`${JSON.stringify(pointer)} is no JSON pointer`);
  return pointer
    .slice(1)
    .split('/')
    .map((token) => token.replaceAll('~1', '/').replaceAll('~0', '~'));
}

function get(document: unknown, pointer: string): unknown {
  let at = document;
  for (const token of tokensOf(pointer)) {
    if (Array.isArray(at)) at = at[indexOf(token, at.length - 1, pointer)];
    else if (isPlainObject(at) && Object.hasOwn(at, token)) at = at[token];
    else throw badRequest(`there is nothing at ${pointer}`);
  }
  return at;
}

function parentOf(document: unknown, pointer: string): { parent: unknown; last: string } {
  const cut = pointer.lastIndexOf('/');
  return { parent: get(document, pointer.slice(0, cut)), last: tokensOf(pointer).at(-1)! };
}

function indexOf(token: string, max: number, pointer: string): number {
  if (!/^(0|[1-9]\d*)$/.test(token) || Number(token) > max) throw badRequest(`there is no list entry at ${pointer}`);
  return Number(token);
}

type Charge = (amount: number) => void;

function add(document: unknown, pointer: string, value: unknown, charge: Charge): unknown {
  if (pointer === '') return value;
  const { parent, last } = parentOf(document, pointer);
  if (Array.isArray(parent)) {
    const at = last === '-' ? parent.length : indexOf(last, parent.length, pointer);
    charge(parent.length - at);
    parent.splice(at, 0, value);
  } else if (isPlainObject(parent)) setOwn(parent, last, value);
  else throw badRequest(`there is nothing to add to at ${pointer}`);
  return document;
}

function replace(document: unknown, pointer: string, value: unknown): unknown {
  const { parent, last } = parentOf(document, pointer);
  if (Array.isArray(parent)) parent[indexOf(last, parent.length - 1, pointer)] = value;
  else if (isPlainObject(parent) && Object.hasOwn(parent, last)) setOwn(parent, last, value);
  else throw badRequest(`there is nothing at ${pointer}`);
  return document;
}

function remove(document: unknown, pointer: string, charge: Charge): unknown {
  if (pointer === '') return null;
  const { parent, last } = parentOf(document, pointer);
  if (Array.isArray(parent)) {
    const at = indexOf(last, parent.length - 1, pointer);
    charge(parent.length - at);
    parent.splice(at, 1);
  } else if (isPlainObject(parent) && Object.hasOwn(parent, last)) delete parent[last];
  else throw badRequest(`there is nothing at ${pointer}`);
  return document;
}
