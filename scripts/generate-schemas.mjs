// Generates packages/api/gen/<group>/<version>/<Kind>.json: the JSON schema of every kind that Mizzen takes and did not invent.
// The source are the type declarations of the @kubernetes-models packages, which are made from the kinds' own CRDs; unlike
// the validators in the same packages they know the whole list of fields, so that an unknown one can be named.
// Nothing generated is committed. Runs on any Node >= 20.
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { newerFields } from './newer-fields.mjs';

const root = join(import.meta.dirname, '..');
const models = join(root, 'node_modules/@kubernetes-models');
const out = join(root, 'packages/api/gen');

const istio = (group, kinds) =>
  Object.entries(kinds).flatMap(([version, names]) =>
    names.map((kind) => ({ group, version, kind, file: join(models, 'istio', group, version, `${kind}.d.ts`) })),
  );
const gatewayApi = (kinds) =>
  Object.entries(kinds).flatMap(([version, names]) =>
    names.map((kind) => ({
      group: 'gateway.networking.k8s.io',
      version,
      kind,
      file: join(models, 'gateway-api/gateway.networking.k8s.io', version, `${kind}.d.ts`),
    })),
  );
const core = (group, version, kinds) =>
  kinds.map((kind) => ({ group, version, kind, file: join(root, 'node_modules/kubernetes-models', group, version, `${kind}.d.ts`) }));

const networking = ['VirtualService', 'DestinationRule', 'Gateway', 'ServiceEntry', 'Sidecar', 'WorkloadEntry', 'WorkloadGroup'];
const security = ['AuthorizationPolicy', 'PeerAuthentication', 'RequestAuthentication'];
const kinds = [
  ...istio('networking.istio.io', { v1: networking, v1beta1: [...networking, 'ProxyConfig'], v1alpha3: [...networking, 'EnvoyFilter'] }),
  ...istio('security.istio.io', { v1: security, v1beta1: security }),
  ...istio('telemetry.istio.io', { v1: ['Telemetry'], v1alpha1: ['Telemetry'] }),
  ...istio('extensions.istio.io', { v1alpha1: ['WasmPlugin'] }),
  ...gatewayApi({
    v1: ['GatewayClass', 'Gateway', 'HTTPRoute', 'GRPCRoute', 'TLSRoute', 'ListenerSet', 'BackendTLSPolicy', 'ReferenceGrant'],
    v1beta1: ['GatewayClass', 'Gateway', 'HTTPRoute', 'ReferenceGrant'],
    v1alpha2: ['TCPRoute', 'UDPRoute'],
  }),
  // The same objects, since Gateway API 1.5 and 1.6.
  ...['TCPRoute', 'UDPRoute'].map((kind) => ({
    group: 'gateway.networking.k8s.io',
    version: 'v1',
    kind,
    file: join(models, 'gateway-api/gateway.networking.k8s.io/v1alpha2', `${kind}.d.ts`),
  })),
  ...['Issuer', 'ClusterIssuer', 'Certificate'].map((kind) => ({
    group: 'cert-manager.io',
    version: 'v1',
    kind,
    file: join(models, 'cert-manager/cert-manager.io/v1', `${kind}.d.ts`),
  })),
  ...core('', 'v1', ['Namespace', 'Service', 'Endpoints', 'Pod', 'Secret', 'ConfigMap', 'ServiceAccount', 'Event']),
  ...core('discovery.k8s.io', 'v1', ['EndpointSlice']),
];

// ---- a reader for the small part of TypeScript that these declarations use ----

const tokenPattern = /\/\*\*([\s\S]*?)\*\/|\/\/[^\n]*|"((?:[^"\\]|\\.)*)"|([A-Za-z_$][\w$.]*)|(-?\d+(?:\.\d+)?)|([{}[\]()<>|&?:;,=])|\s+/y;

function tokenize(text) {
  const tokens = [];
  tokenPattern.lastIndex = 0;
  while (tokenPattern.lastIndex < text.length) {
    const at = tokenPattern.lastIndex;
    const match = tokenPattern.exec(text);
    if (!match) throw new Error(`cannot read ${JSON.stringify(text.slice(at, at + 40))}`);
    if (match[1] !== undefined) tokens.push({ doc: cleanDoc(match[1]) });
    else if (match[2] !== undefined) tokens.push({ literal: JSON.parse(`"${match[2]}"`) });
    else if (match[3] !== undefined) tokens.push({ word: match[3] });
    else if (match[4] !== undefined) tokens.push({ literal: Number(match[4]) });
    else if (match[5] !== undefined) tokens.push({ sign: match[5] });
  }
  return tokens;
}

function cleanDoc(text) {
  return text
    .split('\n')
    .map((line) => line.replace(/^\s*\*? ?/, ''))
    .join('\n')
    .replace(/\\([*_])/g, '$1')
    .trim();
}

class TypeReader {
  constructor(tokens, resolveName) {
    this.tokens = tokens;
    this.at = 0;
    this.resolveName = resolveName;
  }
  skipDocs() {
    let doc;
    while (this.tokens[this.at]?.doc !== undefined) doc = this.tokens[this.at++].doc;
    return doc;
  }
  is(sign) {
    return this.tokens[this.at]?.sign === sign;
  }
  take(sign) {
    if (!this.is(sign)) throw new Error(`expected ${sign}, found ${JSON.stringify(this.tokens[this.at])}`);
    this.at++;
  }
  accept(sign) {
    const found = this.is(sign);
    if (found) this.at++;
    return found;
  }

  /** type := intersection ('|' intersection)* */
  type() {
    this.skipDocs();
    this.accept('|');
    const members = [this.intersection()];
    while (this.accept('|')) members.push(this.intersection());
    return members.length === 1 ? members[0] : unionOf(members);
  }
  intersection() {
    const members = [this.primary()];
    while (this.accept('&')) members.push(this.primary());
    return members.length === 1 ? members[0] : intersectionOf(members);
  }
  primary() {
    this.skipDocs();
    const token = this.tokens[this.at];
    let result;
    if (token.sign === '{') result = this.object();
    else if (token.sign === '(') {
      this.at++;
      result = this.type();
      this.take(')');
    } else if (token.literal !== undefined) {
      this.at++;
      result = { type: typeof token.literal, enum: [token.literal] };
    } else if (token.word) {
      this.at++;
      result = this.named(token.word);
    } else throw new Error(`expected a type, found ${JSON.stringify(token)}`);
    while (this.is('[') && this.tokens[this.at + 1]?.sign === ']') {
      this.at += 2;
      result = { type: 'array', items: result };
    }
    return result;
  }
  named(word) {
    const parameters = [];
    if (this.accept('<')) {
      do parameters.push(this.type());
      while (this.accept(','));
      this.take('>');
    }
    switch (word) {
      case 'string':
      case 'number':
      case 'boolean':
        return { type: word };
      case 'any':
      case 'unknown':
      case 'object':
        return { 'x-kubernetes-preserve-unknown-fields': true };
      case 'null':
        return { type: 'null' };
      case 'Array':
        return { type: 'array', items: parameters[0] };
      case 'Exclude':
        return { excluded: true };
      case 'Partial':
      case 'Required':
      case 'ModelData':
        return parameters[0];
      case 'TypeMeta':
        return { type: 'object', properties: {} };
      default:
        return this.resolveName(word);
    }
  }
  object() {
    this.take('{');
    const schema = { type: 'object', properties: {} };
    const required = [];
    for (;;) {
      const doc = this.skipDocs();
      if (this.accept('}')) break;
      if (this.accept('[')) {
        // index signature
        this.at++;
        this.take(':');
        this.type();
        this.take(']');
        this.take(':');
        schema.additionalProperties = this.type();
      } else {
        const name = this.tokens[this.at].literal ?? this.tokens[this.at].word;
        this.at++;
        const optional = this.accept('?');
        this.take(':');
        const property = { ...this.type() };
        if (doc) property.description = doc;
        schema.properties[name] = property;
        if (!optional) required.push(name);
      }
      this.accept(';');
    }
    if (required.length) schema.required = required;
    if (schema.additionalProperties && Object.keys(schema.properties).length === 0) delete schema.properties;
    return schema;
  }
}

function unionOf(members) {
  const kept = members.filter((member) => member.type !== 'null');
  if (kept.every((member) => member.enum)) return { type: kept[0].type, enum: kept.flatMap((member) => member.enum) };
  const names = new Set(kept.map((member) => member.type));
  if (names.size === 2 && names.has('string') && names.has('number') && kept.every((member) => !member.enum)) return { 'x-kubernetes-int-or-string': true };
  if (kept.length === 1) return kept[0];
  if (kept.every((member) => member.type === 'string')) return { type: 'string' };
  return { alternatives: kept };
}

/** `Base & (Exclude<...> | {"a": ...} | {"b": ...})` is how the declarations say "at most one of a and b". */
function intersectionOf(members) {
  const [base, ...others] = members;
  const schema = { ...base };
  for (const other of others) {
    const group = new Set();
    const collect = (member) => {
      if (member.alternatives) member.alternatives.forEach(collect);
      else if (member.required) for (const name of member.required) if (!base.required?.includes(name)) group.add(name);
    };
    collect(other);
    if (group.size > 1) schema['x-mizzen-one-of'] = [...(schema['x-mizzen-one-of'] ?? []), [...group]];
  }
  return schema;
}

// ---- files ----

const files = new Map();

function declarationsOf(file) {
  let found = files.get(file);
  if (found) return found;
  const text = readFileSync(file, 'utf8');
  found = { imports: new Map(), bodies: new Map(), aliases: new Map(), resolved: new Map() };
  files.set(file, found);
  for (const [, names, from] of text.matchAll(/^import (?:type )?\{([^}]*)\} from "([^"]+)"/gm))
    for (const name of names.split(',')) found.imports.set(name.trim(), from);
  for (const match of text.matchAll(/^export (?:interface (\w+)(?: extends ([^{\n]*?))? (?=\{)|type (\w+) = )/gm)) {
    found.bodies.set(match[1] ?? match[3], { start: match.index + match[0].length, parents: match[2]?.split(',').map((name) => name.trim()) ?? [] });
  }
  for (const match of text.matchAll(/export type \{([^}]*)\}/g))
    for (const pair of match[1].split(',')) {
      const [from, to] = pair.trim().split(' as ');
      if (to) found.aliases.set(to, from);
    }
  found.text = text;
  return found;
}

function locate(from, specifier) {
  if (specifier.startsWith('.')) return resolve(dirname(from), specifier.replace(/\.js$/, '.d.ts'));
  return `${join(root, 'node_modules', specifier.replace(/\.js$/, ''))}.d.ts`;
}

function resolveIn(file, name, seen) {
  const declarations = declarationsOf(file);
  const known = declarations.resolved.get(name);
  if (known) return known;
  const key = `${file}#${name}`;
  if (seen.has(key)) return { type: 'object', 'x-kubernetes-preserve-unknown-fields': true }; // recursive type: left open
  const within = new Set(seen).add(key);
  let schema;
  if (declarations.bodies.has(name)) {
    const { start, parents } = declarations.bodies.get(name);
    const end = endOfDeclaration(declarations.text, start);
    schema = new TypeReader(tokenize(declarations.text.slice(start, end)), (word) => resolveIn(file, word, within)).type();
    for (const parent of parents) if (parent !== 'TypeMeta') schema = inherit(schema, resolveIn(file, parent, within));
  } else if (declarations.aliases.has(name)) schema = resolveIn(file, declarations.aliases.get(name), seen);
  else if (declarations.imports.has(name)) schema = resolveIn(locate(file, declarations.imports.get(name)), name, seen);
  else throw new Error(`${file}: nothing is known of type ${name}`);
  declarations.resolved.set(name, schema);
  return schema;
}

function inherit(schema, parent) {
  return { ...schema, properties: { ...parent.properties, ...schema.properties }, required: [...(parent.required ?? []), ...(schema.required ?? [])] };
}

function endOfDeclaration(text, start) {
  const next = text.slice(start).search(/\n(?:\/\*\*|export |declare |interface )/);
  return next < 0 ? text.length : start + next;
}

const shortDescription = (text) => (text.length > 400 ? `${text.slice(0, 397)}...` : text);

/** Drops what only the reader needed, and cuts descriptions to what `kubectl explain` can show. */
function finish(schema) {
  if (Array.isArray(schema)) return schema.map(finish);
  if (schema === null || typeof schema !== 'object') return schema;
  if (schema.alternatives) return { 'x-kubernetes-preserve-unknown-fields': true };
  // A declaration without fields is protobuf's Struct: anything (EnvoyFilter's value).
  if (schema.type === 'object' && !schema.additionalProperties && Object.keys(schema.properties ?? {}).length === 0)
    return {
      type: 'object',
      'x-kubernetes-preserve-unknown-fields': true,
      ...(schema.description ? { description: shortDescription(schema.description) } : {}),
    };
  const result = {};
  for (const [key, value] of Object.entries(schema)) {
    if (key === 'excluded') continue;
    if (key === 'description') result.description = shortDescription(value);
    else if (key === 'properties') result.properties = Object.fromEntries(Object.entries(value).map(([name, property]) => [name, finish(property)]));
    else result[key] = key === 'enum' || key === 'required' || key.startsWith('x-') ? value : finish(value);
  }
  return result;
}

/** Adds what the packages lack; `[]` in a path goes into the elements of a list. */
function addNewerFields(schema, kind) {
  for (const [path, fields] of newerFields[kind] ?? []) {
    let at = schema;
    for (const part of path.split('.')) {
      at = at.properties[part.replace('[]', '')];
      if (part.endsWith('[]')) at = at.items;
    }
    for (const [name, field] of Object.entries(fields)) {
      if (at.properties[name]) console.warn(`newer-fields.mjs: ${kind} ${path}.${name} is in the packages by now: remove it there`);
      else at.properties[name] = field;
    }
  }
  return schema;
}

rmSync(out, { recursive: true, force: true });
const index = [];
for (const { group, version, kind, file } of kinds) {
  if (!existsSync(file)) throw new Error(`${file} is not there: the @kubernetes-models packages have changed their layout`);
  const schema = addNewerFields(finish(resolveIn(file, `I${kind}`, new Set())), `${group}/${kind}`);
  const properties = schema.properties;
  delete properties.apiVersion;
  delete properties.kind;
  delete properties.metadata; // the decoder owns these three
  schema.required = (schema.required ?? []).filter((name) => name in properties);
  // Event repeats ObjectMeta inside its own fields; everything else is as declared.
  const path = join(out, group || 'core', version);
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, `${kind}.json`), JSON.stringify(schema));
  index.push({ group, version, kind });
}
writeFileSync(join(out, 'index.json'), JSON.stringify(index));
console.log(`generated the schemas of ${index.length} kinds`);
