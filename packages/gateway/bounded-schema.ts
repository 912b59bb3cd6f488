import { compileRegex } from './schema-pattern.ts';

type Json = Readonly<Record<string, unknown>>;

/** Keywords of ./linear-keywords.ts: charging for an evaluation, `uniqueItems` and long lists of `enum` in linear time, and names that differ by case. */
export const workKeyword = 'mizzenWork';
export const uniqueItemsKeyword = 'mizzenUniqueItems';
export const enumKeyword = 'mizzenEnum';
export const namesKeyword = 'mizzenNames';
/** Values are compared one by one up to this many. */
const maxComparedValues = 16;
/** Names of members that one unit of work pays for: each is looked for in each object. */
const membersPerWork = 16;

const subschemas = ['additionalProperties', 'contains', 'else', 'if', 'items', 'not', 'propertyNames', 'then', 'unevaluatedItems', 'unevaluatedProperties'];
const listsOfSubschemas = ['allOf', 'anyOf', 'oneOf', 'prefixItems'];
const mapsOfSubschemas = ['properties', 'patternProperties', 'dependentSchemas'];
/** Annotations, and what other keywords stand for. */
const omitted = new Set([
  ...['$anchor', '$comment', '$defs', '$id', '$ref', '$schema', 'contentSchema', 'default', 'definitions', 'deprecated', 'description', 'discriminator'],
  ...[
    'example',
    'examples',
    'externalDocs',
    'id',
    'nullable',
    'readOnly',
    'title',
    'uniqueItems',
    'writeOnly',
    'xml',
    workKeyword,
    uniqueItemsKeyword,
    enumKeyword,
    namesKeyword,
  ],
]);
const maxSchemaDepth = 200;

/**
 * A schema of an OpenAPI document as JSON Schema 2020-12 whose evaluation is bounded: each schema that contains others charges for its
 * evaluation, references name schemas of their own, and what OpenAPI 3.0 writes otherwise (`nullable`, a boolean `exclusiveMinimum`) is
 * translated. Throws Error for what cannot be evaluated. `referTo` gives the identifier of the schema at a pointer.
 */
export function boundedSchema(given: unknown, referTo: (reference: string) => string, depth = 0): Json | boolean {
  if (typeof given === 'boolean') return given;
  if (typeof given !== 'object' || given === null || Array.isArray(given)) throw new Error(`a schema is an object, not ${JSON.stringify(given)?.slice(0, 50)}`);
  if (depth > maxSchemaDepth) throw new Error(`schemas are nested more than ${maxSchemaDepth} levels deep`);
  const schema = given as Json;
  for (const keyword of ['$dynamicRef', '$recursiveRef']) if (keyword in schema) throw new Error(`${keyword} is not supported: use $ref`);
  const inner = (value: unknown) => boundedSchema(value, referTo, depth + 1);
  const bounded: [string, unknown][] = [];
  let hasParts = false;
  for (const [keyword, value] of Object.entries(schema)) {
    if (omitted.has(keyword) || keyword.startsWith('x-')) continue;
    if (subschemas.includes(keyword)) bounded.push([keyword, inner(value)]);
    else if (listsOfSubschemas.includes(keyword)) {
      if (!Array.isArray(value)) throw new Error(`${keyword} is a list of schemas`);
      bounded.push([keyword, value.map(inner)]);
    } else if (mapsOfSubschemas.includes(keyword)) {
      if (typeof value !== 'object' || value === null) throw new Error(`${keyword} is a map of schemas`);
      if (keyword === 'patternProperties') Object.keys(value).forEach(compileRegex);
      bounded.push([keyword, Object.fromEntries(Object.entries(value).map(([name, member]) => [name, inner(member)]))]);
    } else if (typeof value === 'boolean' && (keyword === 'exclusiveMinimum' || keyword === 'exclusiveMaximum')) {
      // OpenAPI 3.0: whether `minimum` itself is excluded.
      const limit = schema[keyword === 'exclusiveMinimum' ? 'minimum' : 'maximum'];
      if (value && limit !== undefined) bounded.push([keyword, limit]);
      continue;
    } else if (keyword === 'type' && schema['nullable'] === true) {
      bounded.push(['type', [...new Set([...(Array.isArray(value) ? value : [value]), 'null'])]]);
      continue;
    } else if (keyword === 'enum' && Array.isArray(value) && value.length > maxComparedValues) {
      bounded.push([enumKeyword, value]);
      continue;
    } else {
      if (keyword === 'pattern') compileRegex(String(value));
      bounded.push([keyword, value]);
      continue;
    }
    hasParts = true;
  }
  const declared = schema['properties'];
  if (typeof declared === 'object' && declared !== null && !('patternProperties' in schema)) bounded.push([namesKeyword, Object.keys(declared)]);
  if (schema['uniqueItems'] === true) bounded.push([uniqueItemsKeyword, true]);
  if (typeof schema['$ref'] === 'string') {
    bounded.push(['$ref', referTo(schema['$ref'])]);
    hasParts = true;
  }
  const weight = Math.floor((sizeOf(schema['properties']) + sizeOf(schema['required']) + sizeOf(schema['dependentRequired'])) / membersPerWork);
  return Object.fromEntries(hasParts || weight > 0 ? [[workKeyword, 1 + weight], ...bounded] : bounded);
}

const sizeOf = (part: unknown): number => (typeof part === 'object' && part !== null ? Object.keys(part).length : 0);
