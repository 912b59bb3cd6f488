import { createRequire } from 'node:module';
import { messageOf } from '@mizzen/common';
import type { ErrorObject, ValidateFunction } from 'ajv';
import { boundedSchema, enumKeyword, uniqueItemsKeyword } from './bounded-schema.ts';
import { addLinearKeywords } from './linear-keywords.ts';
import { compileRegex } from './schema-pattern.ts';
import { WorkBudgetExceeded, withinBudget, workLimits } from './work-budget.ts';

type Json = Readonly<Record<string, unknown>>;

export interface SchemaCompiler {
  /** The object itself, or what its `$ref` points to within the document. */
  resolve(object: Json): Json;
  /** Verifies a schema and all that it refers to, without compiling them. Throws Error. */
  verify(schema: unknown): void;
  /** Compiled by its first use. `values`: how many values the message has. */
  compile(schema: unknown): (value: unknown, values: number) => readonly { readonly pointer: string; readonly detail: string }[];
  /** For text, which is converted to the type that the schema wants. Returns what is wrong. */
  compileParameter(schema: unknown): (holder: { value: unknown }) => string | undefined;
}

const require = createRequire(import.meta.url);

/** JSON Schema by Ajv (dialect 2020-12), within a work budget for each message. Ajv is loaded when first used. */
export function newSchemaCompiler(document: Json): SchemaCompiler {
  const bodies = new LazyAjv(document, false);
  const parameters = new LazyAjv(document, true);
  return {
    resolve(object) {
      let current = object;
      for (let hops = 0; typeof current['$ref'] === 'string'; hops++) {
        if (hops > 20) throw new Error(`the reference ${JSON.stringify(current['$ref'])} leads to references without end`);
        const target = referenced(document, current['$ref']);
        if (typeof target !== 'object' || target === null) throw new Error(`the reference ${current['$ref']} points to nothing`);
        current = target as Json;
      }
      return current;
    },
    verify: (schema) => bodies.verify(schema),
    compile(schema) {
      let validate: ValidateFunction | undefined;
      return (value, values) =>
        errorsOf(() => (validate ??= bodies.compile(schema)), value, values).map((error) => ({ pointer: `#${pointerOf(error)}`, detail: detailOf(error) }));
    },
    compileParameter(schema) {
      let validate: ValidateFunction | undefined;
      return (holder) => {
        const [error] = errorsOf(() => (validate ??= parameters.compile({ type: 'object', properties: { value: schema } })), holder, 1);
        return error && detailOf(error);
      };
    },
  };
}

/** Ajv with those schemas of a document that have been used so far. */
class LazyAjv {
  readonly #document: Json;
  readonly #coerces: boolean;
  #ajv: import('ajv/dist/2020.js').Ajv2020 | undefined;
  /** Identifiers of the schemas that references name, by reference. */
  readonly #identifiers: Map<string, string>;

  constructor(document: Json, coerces: boolean) {
    this.#document = document;
    this.#coerces = coerces;
    this.#ajv = undefined;
    this.#identifiers = new Map();
  }

  verify(schema: unknown): void {
    for (const bounded of this.#bound(schema)) {
      if (this.#loaded().validateSchema(bounded) !== true) {
        const [error] = this.#loaded().errors ?? [];
        throw new Error(`the schema is not valid: ${error?.instancePath ?? ''} ${error?.message ?? ''}`.replace('  ', ' '));
      }
    }
  }

  compile(schema: unknown): ValidateFunction {
    const [own = true] = this.#bound(schema);
    return this.#loaded().compile(own as object);
  }

  /** The schema, then each that is referred to for the first time and now known by its identifier; bounded. */
  #bound(schema: unknown): (Json | boolean)[] {
    const found: [string, unknown][] = [['', schema]];
    const referTo = (reference: string): string => {
      let identifier = this.#identifiers.get(reference);
      if (identifier === undefined) {
        const target = referenced(this.#document, reference);
        if (target === undefined || target === null) throw new Error(`the reference ${reference} points to nothing`);
        identifier = `mizzen:schema-${this.#identifiers.size}`;
        this.#identifiers.set(reference, identifier);
        found.push([identifier, target]);
      }
      return identifier;
    };
    const all: (Json | boolean)[] = [];
    for (let i = 0; i < found.length; i++) {
      const [identifier, one] = found[i] ?? ['', true];
      const bounded = boundedSchema(one, referTo);
      if (i > 0) this.#loaded().addSchema(bounded as object, identifier);
      all.push(bounded);
    }
    return all;
  }

  #loaded(): import('ajv/dist/2020.js').Ajv2020 {
    if (this.#ajv !== undefined) return this.#ajv;
    const { Ajv2020 } = require('ajv/dist/2020.js') as typeof import('ajv/dist/2020.js');
    const ajv = new Ajv2020({
      strict: false,
      validateSchema: false,
      allErrors: false,
      logger: false,
      // 1e400 is not a number that services read alike.
      strictNumbers: true,
      ...(this.#coerces ? { coerceTypes: 'array' as const } : {}),
      code: { regExp: Object.assign(compileRegex, { code: 'linear-time' }) as never },
    });
    addLinearKeywords(ajv);
    this.#ajv = ajv;
    return ajv;
  }
}

function referenced(document: Json, reference: string): unknown {
  if (!reference.startsWith('#/')) throw new Error(`the reference ${JSON.stringify(reference)} cannot be followed: references within the document (#/...) can`);
  let at: unknown = document;
  for (const part of reference.slice(2).split('/')) {
    const name = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~');
    at = typeof at === 'object' && at !== null && Object.hasOwn(at, name) ? (at as Json)[name] : undefined;
  }
  return at;
}

function errorsOf(validate: () => ValidateFunction, value: unknown, values: number): readonly ErrorObject[] {
  try {
    const compiled = validate();
    return withinBudget(values, () => (compiled(value) ? [] : (compiled.errors ?? []).slice(0, workLimits.maxErrors)));
  } catch (error) {
    // Fails closed: what cannot be verified is refused.
    const message = error instanceof WorkBudgetExceeded ? error.message : `it cannot be verified: ${messageOf(error)}`;
    return [{ instancePath: '', message } as ErrorObject];
  }
}

/** Where the bad field is: for one that is missing or not known, the place where it is, or would be. */
function pointerOf({ instancePath, keyword, params }: ErrorObject): string {
  const { missingProperty, additionalProperty, unevaluatedProperty } = (params ?? {}) as Record<string, string | undefined>;
  const name = keyword === 'required' ? missingProperty : (additionalProperty ?? unevaluatedProperty);
  const pointer = name === undefined ? instancePath : `${instancePath}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
  return limited(pointer);
}

function detailOf({ message, keyword, params }: ErrorObject): string {
  if (keyword === 'enum')
    return limited(`must be one of ${((params as { allowedValues?: unknown[] }).allowedValues ?? []).map((value) => JSON.stringify(value)).join(', ')}`);
  if (keyword === enumKeyword) return 'must be one of the values that the description lists';
  if (keyword === 'required') return 'is missing';
  if (keyword === 'additionalProperties' || keyword === 'unevaluatedProperties') return 'is not known here';
  if (keyword === uniqueItemsKeyword) return 'must not have items twice';
  return limited(message ?? 'is not valid');
}

function limited(text: string): string {
  return text.length <= workLimits.maxErrorLength ? text : `${text.slice(0, workLimits.maxErrorLength)}...`;
}
