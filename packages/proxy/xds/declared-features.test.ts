import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { DescMessage } from '@bufbuild/protobuf';
import { currentFeatures } from '@mizzen/envoy-api';
import { file_mizzen_http_v1_filters } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import '../engine.ts';
import { filterKinds } from '../filters/filter-kinds.ts';
import { declaredFeatures } from './declared-features.ts';
import { registeredFields, withholdFeatures } from './supported-fields.ts';

/** All that this version supports, as it is written in packages/envoy-api/proxy-features.ts. */
function supportedFeatures(): string[] {
  const messages = (list: readonly DescMessage[]): DescMessage[] => list.flatMap((message) => [message, ...messages(message.nestedMessages)]);
  const own = messages(file_mizzen_http_v1_filters.messages).filter(({ typeName }) => !typeName.endsWith('Entry'));
  const fields = new Map<string, readonly string[]>([
    ...[...registeredFields()].map(([type, names]) => [type, [...names]] as const),
    ...own.map(({ typeName, fields }) => [typeName, fields.map(({ localName }) => localName)] as const),
  ]);
  return [
    ...[...filterKinds.keys()].sort().map((name) => `filter/${name}`),
    ...[...fields].map(([type, names]) => `fields/${type}=${[...names].sort()}`).sort(),
  ];
}

describe('the features that a proxy declares', () => {
  it('are all that it supports: a new field or filter must be added to packages/envoy-api/proxy-features.ts', () => {
    assert.deepEqual([...currentFeatures], supportedFeatures(), `set currentFeatures to ${JSON.stringify(supportedFeatures(), null, 2)}`);
  });

  it('are without what a test withholds', () => {
    withholdFeatures(['envoy.filters.http.rbac', 'envoy.config.route.v3.RouteMatch.headers']);
    const declared = declaredFeatures();
    withholdFeatures([]);
    assert.ok(!declared.includes('filter/envoy.filters.http.rbac'));
    const fields = declared.find((feature) => feature.startsWith('fields/envoy.config.route.v3.RouteMatch='));
    assert.ok(fields !== undefined && !/[=,]headers/.test(fields) && /[=,]queryParameters/.test(fields), fields);
  });
});
