import { createHash } from 'node:crypto';
import { MizzenError, messageOf } from '@mizzen/common';
import { PathTrie } from './path-trie.ts';
import { isReadDifferently, queryValues } from './query-string.ts';
import { newSchemaCompiler, type SchemaCompiler } from './schema-compiler.ts';
import { measure, workLimits } from './work-budget.ts';

export interface ContentCheck {
  readonly errors: readonly { readonly pointer?: string; readonly parameter?: string; readonly detail: string }[];
  readonly detail: string;
}

/** As much of a message's header as checking needs. */
export interface HeaderFields {
  /** All values of a field, joined with commas. */
  getJoined(name: string): string | undefined;
}

type Json = Readonly<Record<string, unknown>>;
const methods = ['get', 'put', 'post', 'delete', 'options', 'head', 'patch', 'trace'];

/** Documents in use, by the digest of their text and base path. */
const documents = new Map<string, WeakRef<OpenApiDocument>>();

/**
 * An OpenAPI document as requests meet it: templates of paths, and for each operation what it takes. Schemas are compiled when the first request
 * needs them, since a large document has thousands; a text that is in use already is not read again.
 */
export class OpenApiDocument {
  readonly #paths: PathTrie<PathItem>;
  readonly #basePath: string;
  readonly #schemas: readonly { readonly place: string; readonly verify: () => void }[];

  private constructor(paths: PathTrie<PathItem>, basePath: string, schemas: readonly { readonly place: string; readonly verify: () => void }[]) {
    this.#paths = paths;
    this.#basePath = basePath;
    this.#schemas = schemas;
  }

  /** Throws MizzenError with the place in the document that cannot be used. Schemas are not verified: see `verify`. */
  static compile(text: string, basePath: string, place: string): OpenApiDocument {
    const digest = `${createHash('sha256').update(text).digest('base64')} ${basePath}`;
    const known = documents.get(digest)?.deref();
    if (known !== undefined) return known;
    const document = OpenApiDocument.#read(text, basePath, place);
    for (const [key, reference] of documents) if (reference.deref() === undefined) documents.delete(key);
    documents.set(digest, new WeakRef(document));
    return document;
  }

  static #read(text: string, basePath: string, place: string): OpenApiDocument {
    let document: Json;
    try {
      document = JSON.parse(text) as Json;
    } catch (error) {
      throw new MizzenError('invalid-openapi', `${place}: the OpenAPI document is not JSON: ${messageOf(error)}`);
    }
    const version = document['openapi'];
    if (typeof version !== 'string' || !/^3\.[01]\.\d+/.test(version))
      throw new MizzenError('invalid-openapi', `${place}: openapi is ${JSON.stringify(version)}; OpenAPI 3.0 and 3.1 are supported`);
    const compiler = newSchemaCompiler(document);
    const paths = new PathTrie<PathItem>();
    const schemas: { place: string; verify: () => void }[] = [];
    for (const [template, item] of Object.entries((document['paths'] ?? {}) as Record<string, Json>)) {
      // Specification extensions may stand beside paths.
      if (template.startsWith('x-')) continue;
      const at = `${place}: paths["${template}"]`;
      try {
        const compiled = new PathItem(item, compiler, (schema) => schemas.push({ place: at, verify: () => compiler.verify(schema) }));
        compiled.parameterNames = paths.add(template, compiled);
      } catch (error) {
        throw new MizzenError('invalid-openapi', `${at}: ${messageOf(error)}`);
      }
    }
    return new OpenApiDocument(paths, basePath.replace(/\/$/, ''), schemas);
  }

  /** Verifies every schema. Throws MizzenError with the place of one that cannot be compiled. */
  verify(): void {
    for (const { place, verify } of this.#schemas) {
      try {
        verify();
      } catch (error) {
        throw new MizzenError('invalid-openapi', `${place}: ${messageOf(error)}`);
      }
    }
  }

  find(
    method: string,
    target: string,
  ):
    | { readonly kind: 'unknown-path' }
    | { readonly kind: 'unknown-method'; readonly allowed: readonly string[] }
    | { readonly kind: 'operation'; readonly operation: Operation; readonly pathParameters: Readonly<Record<string, string>> } {
    const cut = target.indexOf('?');
    const path = cut < 0 ? target : target.slice(0, cut);
    if (!path.startsWith(this.#basePath)) return { kind: 'unknown-path' };
    const rest = path.slice(this.#basePath.length) || '/';
    let allowed: readonly string[] | undefined;
    for (const { item, values } of this.#paths.find(rest)) {
      const pathParameters = item.decode(values);
      if (pathParameters === undefined) continue;
      const operation = item.operations.get(method) ?? (method === 'HEAD' ? item.operations.get('GET') : undefined);
      if (operation !== undefined) return { kind: 'operation', operation, pathParameters };
      allowed ??= [...item.operations.keys()];
    }
    return allowed === undefined ? { kind: 'unknown-path' } : { kind: 'unknown-method', allowed };
  }
}

class PathItem {
  parameterNames: readonly string[];
  readonly operations: ReadonlyMap<string, Operation>;

  constructor(given: Json, compiler: SchemaCompiler, found: (schema: unknown) => void) {
    const item = compiler.resolve(given);
    this.parameterNames = [];
    const shared = ((item['parameters'] ?? []) as Json[]).map((parameter) => compiler.resolve(parameter));
    this.operations = new Map(
      methods.flatMap((method) => {
        const operation = item[method];
        return operation === undefined ? [] : [[method.toUpperCase(), new Operation(operation as Json, shared, compiler, found)] as const];
      }),
    );
  }

  /** undefined: a value of the path cannot be decoded. */
  decode(given: readonly string[]): Record<string, string> | undefined {
    const values: Record<string, string> = {};
    for (const [i, name] of this.parameterNames.entries()) {
      try {
        values[name] = decodeURIComponent(given[i] ?? '');
      } catch {
        return undefined;
      }
    }
    return values;
  }
}

interface Parameter {
  readonly name: string;
  readonly location: 'path' | 'query' | 'header' | 'cookie';
  readonly isRequired: boolean;
  readonly isList: boolean;
  /** A value or a list of values, not an object. */
  readonly isPlain: boolean;
  /** `explode`: a list is given by repeating the parameter. */
  readonly explodes: boolean;
  check(values: { value: unknown }): string | undefined;
}

export class Operation {
  readonly requiresBody: boolean;
  readonly mediaTypes: readonly string[];
  readonly #parameters: readonly Parameter[];
  readonly #names: ReadonlySet<string>;
  readonly #contents: ReadonlyMap<string, ((body: Buffer) => ContentCheck) | undefined>;

  constructor(operation: Json, shared: readonly Json[], compiler: SchemaCompiler, found: (schema: unknown) => void) {
    const own = ((operation['parameters'] ?? []) as Json[]).map((parameter) => compiler.resolve(parameter));
    const key = (parameter: Json) => `${String(parameter['in'])} ${String(parameter['name'])}`;
    const taken = new Set(own.map(key));
    this.#parameters = [...own, ...shared.filter((parameter) => !taken.has(key(parameter)))].flatMap((parameter) => {
      const compiled = compileParameter(parameter, compiler, found);
      return compiled === undefined ? [] : [compiled];
    });
    this.#names = new Set(this.#parameters.map(({ name }) => name));
    const given = operation['requestBody'] as Json | undefined;
    const body = given && compiler.resolve(given);
    this.requiresBody = body?.['required'] === true;
    const contents = (body?.['content'] ?? {}) as Record<string, Json>;
    this.mediaTypes = Object.keys(contents);
    this.#contents = new Map(
      Object.entries(contents).map(([given, content]) => {
        // Parameters such as charset do not choose a media type.
        const type = given.split(';', 1)[0]!.trim().toLowerCase();
        const isJson = /^(?:[\w.+-]+|\*)\/(?:json|[\w.+-]+\+json|\*)$/.test(type);
        const schema = content['schema'] as Json | undefined;
        // A range such as */* with a schema of text or bytes does not describe JSON.
        const isText = type.endsWith('/*') && schema !== undefined && compiler.resolve(schema)['type'] === 'string';
        if (!isJson || schema === undefined || isText) return [type, undefined] as const;
        found(schema);
        return [type, jsonCheck(compiler.compile(schema))] as const;
      }),
    );
  }

  checkParameters(path: Readonly<Record<string, string>>, target: string, headers: HeaderFields): ContentCheck['errors'] {
    const errors: { parameter: string; detail: string }[] = [];
    for (const parameter of this.#parameters) {
      const { name, location, isRequired, isList, isPlain, explodes } = parameter;
      let values: string[];
      if (location === 'path') values = path[name] === undefined ? [] : [path[name]];
      else if (location === 'query') values = queryValues(target, name);
      else if (location === 'header') {
        const value = headers.getJoined(name.toLowerCase());
        values = value === undefined ? [] : [value.trim()];
      } else values = cookieValues(headers.getJoined('cookie'), name);
      if (location === 'query' && isPlain && isReadDifferently(target, name, this.#names)) {
        errors.push({ parameter: name, detail: 'servers differ in how they read this parameter: give it once, without brackets' });
        continue;
      }
      if (values.length === 0) {
        if (isRequired) errors.push({ parameter: name, detail: `the ${location} parameter is missing` });
        continue;
      }
      if (!isList && values.length > 1) {
        errors.push({ parameter: name, detail: 'the parameter may be given once' });
        continue;
      }
      const value = isList ? (explodes && location === 'query' ? values : values.flatMap((text) => text.split(','))) : values[0];
      const problem = parameter.check({ value });
      if (problem !== undefined) errors.push({ parameter: name, detail: problem });
    }
    return errors;
  }

  contentCheckFor(contentType: string | undefined): ((body: Buffer) => ContentCheck) | 'not-taken' | 'not-checked' {
    const type = (contentType ?? '').split(';', 1)[0]!.trim().toLowerCase();
    for (const candidate of [type, `${type.split('/', 1)[0]}/*`, '*/*'])
      if (this.#contents.has(candidate)) {
        const check = this.#contents.get(candidate);
        // Under a range, content of any type is held to the schema: a service may read JSON whatever its Content-Type.
        return check ?? 'not-checked';
      }
    return 'not-taken';
  }
}

/** JSON's own form (RFC 8259 section 6); integers have no exponent. */
const jsonNumber = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const jsonInteger = /^-?(?:0|[1-9]\d*)(?:\.0+)?$/;

function compileParameter(parameter: Json, compiler: SchemaCompiler, found: (schema: unknown) => void): Parameter | undefined {
  const name = String(parameter['name']);
  const location = parameter['in'];
  if (location !== 'path' && location !== 'query' && location !== 'header' && location !== 'cookie') return undefined;
  // These are about HTTP itself, and described elsewhere (OpenAPI 3.1, Parameter Object).
  if (location === 'header' && ['accept', 'content-type', 'authorization'].includes(name.toLowerCase())) return undefined;
  const style = parameter['style'] ?? (location === 'query' || location === 'cookie' ? 'form' : 'simple');
  const schema = parameter['schema'] as Json | undefined;
  const isRequired = parameter['required'] === true || location === 'path';
  const resolved = schema && compiler.resolve(schema);
  const isList = resolved?.['type'] === 'array';
  // Objects and rarer styles are only looked for, not into.
  const isPlain = schema !== undefined && (style === 'form' || style === 'simple') && resolved?.['type'] !== 'object';
  if (isPlain) found(schema);
  const check = isPlain ? compiler.compileParameter(schema) : undefined;
  const types = [resolved?.['type'], (resolved?.['items'] as Json | undefined)?.['type']].flat();
  const number = types.includes('number') ? jsonNumber : jsonInteger;
  return {
    ...{ name, location, isRequired, isList: isList || !isPlain, isPlain, explodes: parameter['explode'] !== false },
    check(holder) {
      // Conversion changes lists in place.
      const given = Array.isArray(holder.value) ? [...holder.value] : holder.value;
      const problem = check?.(holder);
      if (problem !== undefined) return problem;
      // Conversion takes `0x10`, ` 5` and `+5`, which services read otherwise.
      const [before, after] = [given, holder.value].map((value) => (Array.isArray(value) ? value : [value]));
      const isWrong = after?.some((value, i) => typeof value === 'number' && !number.test(String(before?.[i])));
      return isWrong === true ? 'must be a number in decimal digits' : undefined;
    },
  };
}

function jsonCheck(check: (value: unknown, values: number) => ContentCheck['errors']): (body: Buffer) => ContentCheck {
  return (body) => {
    let value: unknown;
    let text: string;
    try {
      // RFC 8259 section 8.1: UTF-8. What is replaced here would reach the service as it came.
      text = strictUtf8.decode(body);
      value = JSON.parse(text);
    } catch (error) {
      return { errors: [{ pointer: '#', detail: messageOf(error) }], detail: 'the body is not JSON in UTF-8' };
    }
    const { values, members, isTooDeep } = measure(value);
    // RFC 8259 section 4: of members with one name, the service may read another one than was verified.
    if (!isTooDeep && members !== memberCountOf(text))
      return { errors: [{ pointer: '#', detail: 'a name occurs twice in one object' }], detail: 'the body is ambiguous' };
    if (isTooDeep) return { errors: [{ pointer: '#', detail: `it is nested deeper than ${workLimits.maxDepth}` }], detail: 'the body is nested too deep' };
    if (/\\u[dD][89a-fA-F]/.test(text) && !isWellFormed(value))
      return { errors: [{ pointer: '#', detail: 'an escape stands for half of a character' }], detail: 'the body is ambiguous' };
    return { errors: check(value, values), detail: 'the body does not fit this API' };
  };
}

/** RFC 7493 section 2.1: readers replace, drop or refuse halves of surrogate pairs. The depth has been verified. */
function isWellFormed(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed();
  if (typeof value !== 'object' || value === null) return true;
  if (Array.isArray(value)) return value.every(isWellFormed);
  return Object.entries(value).every(([name, member]) => name.isWellFormed() && isWellFormed(member));
}

const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** How many members the objects of a valid JSON text have, those with equal names included: one for each colon outside of strings. */
function memberCountOf(text: string): number {
  let count = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === 0x3a) count++;
    else if (code === 0x22) for (i++; text.charCodeAt(i) !== 0x22; i++) if (text.charCodeAt(i) === 0x5c) i++;
  }
  return count;
}

function cookieValues(text: string | undefined, name: string): string[] {
  return (text ?? '')
    .split(/[;,]/)
    .map((part) => part.trim())
    .filter((part) => part.startsWith(`${name}=`))
    .map((part) => part.slice(name.length + 1));
}
