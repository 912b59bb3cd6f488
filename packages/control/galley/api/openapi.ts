import { type Kind, kinds, objectSchemaOf, type Schema } from '@mizzen/api';
import { version as programVersion } from '@mizzen/common';
import { mergeKeys } from '../patch/strategic-merge-patch.ts';
import { groups } from './discovery.ts';

/**
 * OpenAPI v3 documents, one per group and version, from the kinds' schemas: what `kubectl explain` shows and what tells kubectl that
 * the server checks fields itself (the `fieldValidation` parameter on PATCH).
 */
export function openApiIndex(): unknown {
  const paths: Record<string, { serverRelativeURL: string }> = { 'api/v1': { serverRelativeURL: '/openapi/v3/api/v1' } };
  for (const group of groups) {
    for (const version of new Set(kinds.filter((kind) => kind.group === group).flatMap((kind) => kind.versions))) {
      paths[`apis/${group}/${version}`] = { serverRelativeURL: `/openapi/v3/apis/${group}/${version}` };
    }
  }
  return { paths };
}

export function openApiDocument(group: string, version: string): unknown | undefined {
  const served = kinds.filter((kind) => kind.group === group && kind.versions.includes(version));
  if (served.length === 0) return undefined;
  const base = group ? `/apis/${group}/${version}` : `/api/${version}`;
  const schemas: Record<string, unknown> = {};
  const paths: Record<string, unknown> = {};
  for (const kind of served) {
    const name = schemaName(kind, version);
    const extension = { 'x-kubernetes-group-version-kind': [{ group, version, kind: kind.kind }] };
    schemas[name] = { ...publish(objectSchemaOf(kind), group === '' ? '' : undefined), ...extension };
    schemas[`${name}List`] = {
      type: 'object',
      required: ['items'],
      properties: {
        apiVersion: { type: 'string' },
        kind: { type: 'string' },
        metadata: { type: 'object' },
        items: { type: 'array', items: { $ref: `#/components/schemas/${name}` } },
      },
      'x-kubernetes-group-version-kind': [{ group, version, kind: `${kind.kind}List` }],
    };
    const collection = kind.isNamespaced ? `${base}/namespaces/{namespace}/${kind.plural}` : `${base}/${kind.plural}`;
    const namespaceParameter = kind.isNamespaced ? [{ name: 'namespace', in: 'path', required: true, schema: { type: 'string' } }] : [];
    paths[collection] = {
      parameters: namespaceParameter,
      get: operation('list', kind, version, `${name}List`),
      post: operation('post', kind, version, name, true),
    };
    paths[`${collection}/{name}`] = {
      parameters: [...namespaceParameter, { name: 'name', in: 'path', required: true, schema: { type: 'string' } }],
      get: operation('get', kind, version, name),
      put: operation('put', kind, version, name, true),
      patch: operation('patch', kind, version, name, true),
      delete: operation('delete', kind, version, name),
    };
  }
  return { openapi: '3.0.0', info: { title: 'Mizzen', version: programVersion }, paths, components: { schemas } };
}

function schemaName(kind: Kind, version: string): string {
  const reversed = kind.group ? kind.group.split('.').reverse().join('.') : 'io.k8s.api.core';
  return `${reversed}.${version}.${kind.kind}`;
}

const patchTypes = ['application/json-patch+json', 'application/merge-patch+json', 'application/strategic-merge-patch+json', 'application/apply-patch+yaml'];

function operation(action: string, kind: Kind, version: string, schema: string, isWrite = false): unknown {
  const content = { $ref: `#/components/schemas/${schema}` };
  const types = action === 'patch' ? patchTypes : ['application/json', 'application/yaml'];
  return {
    operationId: `${action}${kind.kind}`,
    'x-kubernetes-action': action,
    'x-kubernetes-group-version-kind': { group: kind.group, version, kind: kind.kind },
    parameters: isWrite
      ? ['dryRun', 'fieldManager', 'fieldValidation'].map((name) => ({ name, in: 'query', schema: { type: 'string', uniqueItems: true } }))
      : [],
    ...(isWrite
      ? {
          requestBody: {
            required: true,
            content: Object.fromEntries(types.map((type) => [type, { schema: action === 'patch' ? { type: 'object' } : content }])),
          },
        }
      : {}),
    responses: { 200: { description: 'OK', content: { 'application/json': { schema: content } } } },
  };
}

/**
 * OpenAPI has no word for a one-of group: it is told in the description. `path` is given for the core kinds, whose lists kubectl merges
 * by key and must be told how.
 */
function publish(schema: Schema, path: string | undefined): Record<string, unknown> {
  const { properties, items, additionalProperties, 'x-mizzen-one-of': oneOf, ...rest } = schema;
  const below = (name: string) => (path === undefined ? undefined : path === '' ? name : `${path}.${name}`);
  const mergeKey = path === undefined ? undefined : mergeKeys[path];
  const oneOfText = oneOf?.map((group) => `At most one of ${group.join(', ')} may be set.`).join(' ');
  return {
    ...rest,
    ...(oneOfText ? { description: `${rest.description ?? ''}${rest.description ? '\n\n' : ''}${oneOfText}` } : {}),
    ...(mergeKey ? { 'x-kubernetes-patch-merge-key': mergeKey, 'x-kubernetes-patch-strategy': 'merge' } : {}),
    ...(properties ? { properties: Object.fromEntries(Object.entries(properties).map(([name, property]) => [name, publish(property, below(name))])) } : {}),
    ...(items ? { items: publish(items, path) } : {}),
    ...(additionalProperties ? { additionalProperties: publish(additionalProperties, undefined) } : {}),
  };
}
