import { createRequire } from 'node:module';
import { messageOf } from '@mizzen/common';
import type { ErrorObject, ValidateFunction } from 'ajv';
import { RE2JS } from 're2js';

type Json = Readonly<Record<string, unknown>>;

export interface SchemaCompiler {
  /** The object itself, or what its `$ref` points to within the document. */
  resolve(object: Json): Json;
  compile(schema: Json, pointer: string): (value: unknown) => { readonly pointer: string; readonly detail: string }[];
  /** For text: it is taken for the type that the schema wants. Returns what is wrong. */
  compileParameter(schema: Json): (holder: { value: unknown }) => string | undefined;
}

const base = 'openapi.json';
const require = createRequire(import.meta.url);

/** JSON Schema by Ajv (dialect 2020-12). Patterns are RE2's, so that none of them takes exponential time. Loaded when first used. */
export function newSchemaCompiler(document: Json): SchemaCompiler {
  const { Ajv2020 } = require('ajv/dist/2020.js') as typeof import('ajv/dist/2020.js');
  const formats = require('ajv-formats') as { default: (ajv: unknown) => void };
  const engine = Object.assign(
    (pattern: string) => {
      const compiled = RE2JS.compile(pattern);
      return { test: (text: string) => compiled.matcher(text).find() };
    },
    { code: 'linear-time' },
  );
  const options = { strict: false, validateSchema: false, allErrors: false, code: { regExp: engine as never } } as const;
  const bodies = new Ajv2020(options);
  const parameters = new Ajv2020({ ...options, coerceTypes: 'array' });
  for (const ajv of [bodies, parameters]) {
    formats.default(ajv);
    ajv.addSchema({ ...document, $id: base }, base);
  }
  /** References are within the document. */
  const based = (schema: Json): Json => JSON.parse(JSON.stringify(schema).replaceAll('"$ref":"#', `"$ref":"${base}#`)) as Json;
  const compiled = (validate: ValidateFunction, value: unknown): readonly ErrorObject[] => {
    try {
      return validate(value) ? [] : (validate.errors ?? []);
    } catch (error) {
      return [{ instancePath: '', message: `it cannot be checked: ${messageOf(error)}` } as ErrorObject];
    }
  };
  return {
    resolve(object) {
      let current = object;
      for (let hops = 0; typeof current['$ref'] === 'string'; hops++) {
        if (hops > 20 || !current['$ref'].startsWith('#/'))
          throw new Error(`the reference ${JSON.stringify(current['$ref'])} cannot be followed: references within the document can`);
        let at: unknown = document;
        for (const part of current['$ref'].slice(2).split('/'))
          at = (at as Json | undefined)?.[decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')];
        if (typeof at !== 'object' || at === null) throw new Error(`the reference ${current['$ref']} points to nothing`);
        current = at as Json;
      }
      return current;
    },
    compile(schema) {
      const validate = bodies.compile(based(schema));
      return (value) => compiled(validate, value).map((error) => ({ pointer: `#${pointerOf(error)}`, detail: detailOf(error) }));
    },
    compileParameter(schema) {
      const validate = parameters.compile({ type: 'object', properties: { value: based(schema) } });
      return (holder) => {
        const [error] = compiled(validate, holder);
        return error && detailOf(error);
      };
    },
  };
}

/** Where the bad field is: for one that is missing or not known, the place where it is, or would be. */
function pointerOf({ instancePath, keyword, params }: ErrorObject): string {
  const { missingProperty, additionalProperty, unevaluatedProperty } = (params ?? {}) as Record<string, string | undefined>;
  const name = keyword === 'required' ? missingProperty : (additionalProperty ?? unevaluatedProperty);
  return name === undefined ? instancePath : `${instancePath}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

function detailOf({ message, keyword, params }: ErrorObject): string {
  if (keyword === 'enum')
    return `must be one of ${((params as { allowedValues?: unknown[] }).allowedValues ?? []).map((value) => JSON.stringify(value)).join(', ')}`;
  if (keyword === 'required') return 'is missing';
  if (keyword === 'additionalProperties' || keyword === 'unevaluatedProperties') return 'is not known here';
  return message ?? 'is not valid';
}
