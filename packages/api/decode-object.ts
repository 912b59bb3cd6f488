import { explainUnknownKind, findKind, objectSchemaOf } from './kinds.ts';
import { pruneNulls } from './prune-nulls.ts';
import { groupOf, type Problem, type Resource, versionOf } from './resource.ts';
import { semanticProblems } from './semantics/index.ts';
import { isPlainObject, validate } from './validate.ts';

/** The result of decoding one object: the checked resource, or what is wrong with it. */
export type DecodedObject = { readonly resource: Resource } | { readonly problems: readonly Problem[] };

/** DNS-1123 subdomain, the form of a Kubernetes object name. */
const objectName = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;

/**
 * Checks an untyped object, from YAML or from a request body, against its kind: identity, schema, then the meaning of its fields.
 * References to other objects are not checked here, since those may come later; the control plane's analysis does.
 */
export function decodeObject(given: unknown, options: { readonly defaultNamespace?: string } = {}): DecodedObject {
  if (!isPlainObject(given)) return refuse('wrong-type', '', 'a resource must be an object with apiVersion, kind and metadata');
  const { apiVersion, kind: kindName } = given;
  if (typeof apiVersion !== 'string' || apiVersion === '')
    return refuse('missing-field', 'apiVersion', 'required field "apiVersion" is missing, for example networking.istio.io/v1');
  if (typeof kindName !== 'string' || kindName === '') return refuse('missing-field', 'kind', 'required field "kind" is missing, for example VirtualService');
  const kind = findKind(groupOf(apiVersion), kindName);
  if (!kind?.versions.includes(versionOf(apiVersion)))
    return refuse('unknown-kind', kind || findKindAnywhere(kindName) ? 'apiVersion' : 'kind', explainUnknownKind(apiVersion, kindName));

  const schema = objectSchemaOf(kind);
  const value = pruneNulls(given, schema) as Record<string, unknown>;
  const problems = validate(value, schema);
  const metadata = value['metadata'];
  if (isPlainObject(metadata)) {
    const name = metadata['name'];
    if (name === undefined && metadata['generateName'] === undefined)
      problems.push({ code: 'missing-field', path: 'metadata.name', message: 'required field "metadata.name" is missing' });
    else if (typeof name === 'string' && (name.length > 253 || !objectName.test(name))) {
      problems.push({
        code: 'invalid-value',
        path: 'metadata.name',
        message: `${JSON.stringify(name.slice(0, 80))} is no valid name: use lower-case letters, digits, "-" and ".", at most 253`,
      });
    }
  }
  if (problems.length > 0) return { problems };

  const meta = metadata as Record<string, unknown>;
  const resource = {
    ...value,
    metadata: kind.isNamespaced ? { ...meta, namespace: meta['namespace'] ?? options.defaultNamespace ?? 'default' } : withoutNamespace(meta),
  } as unknown as Resource;
  const found = boundedProblems(resource);
  return found.length > 0 ? { problems: found.slice(0, maxProblems) } : { resource };
}

/** Reported for one object. */
const maxProblems = 100;

function boundedProblems(resource: Resource): readonly Problem[] {
  try {
    return semanticProblems(resource);
  } catch (error) {
    // More problems than an argument list holds (about 120,000).
    if (error instanceof RangeError) return [{ code: 'invalid-value', path: 'spec', message: 'has too many errors to list them' }];
    throw error;
  }
}

function withoutNamespace({ namespace: _, ...rest }: Record<string, unknown>): Record<string, unknown> {
  return rest;
}

function findKindAnywhere(kindName: string): boolean {
  return !explainUnknownKind('', kindName).startsWith('unknown kind');
}

function refuse(code: string, path: string, message: string): DecodedObject {
  return { problems: [{ code, path, message }] };
}
