import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { StoredResource } from '../galley/config-store.ts';
import { defaultMeshConfig, readMeshConfig } from './mesh-config.ts';

const stored = (mesh: unknown) => ({ resource: { data: { mesh } } }) as unknown as StoredResource;

describe('the mesh config', () => {
  it('has defaults, and takes what has behaviour from the text that Istio’s users bring', () => {
    assert.deepEqual(readMeshConfig(undefined), defaultMeshConfig);
    assert.deepEqual(readMeshConfig(stored('accessLogFile: /dev/stdout\nenableTracing: true\n')), defaultMeshConfig);
    assert.deepEqual(readMeshConfig(stored('outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\nprotocolDetectionTimeout: 250ms\nh2UpgradePolicy: UPGRADE\n')), {
      ...defaultMeshConfig,
      outboundTrafficPolicy: 'REGISTRY_ONLY',
      protocolDetectionTimeoutMs: 250,
      upgradesToHttp2: true,
    });
    assert.deepEqual(readMeshConfig(stored('')), defaultMeshConfig);
  });

  it('takes where spans are sent', () => {
    const { extensionProviders, defaultTracingProviders } = readMeshConfig(
      stored(`extensionProviders:
- name: otel
  opentelemetry: { service: ns/collector.test, port: 4317 }
- name: otel-http
  opentelemetry: { service: collector.test, port: 4318, http: { path: /v1/x, timeout: 1s, headers: [{ name: k, value: v }] } }
- name: old
  zipkin: { service: z, port: 9411 }
defaultProviders: { tracing: [otel] }
`),
    );
    assert.deepEqual(extensionProviders.tracing, [
      { name: 'otel', service: 'collector.test', port: 4317, http: undefined },
      { name: 'otel-http', service: 'collector.test', port: 4318, http: { path: '/v1/x', timeoutMs: 1_000, headers: { k: 'v' } } },
    ]);
    assert.deepEqual(defaultTracingProviders, ['otel']);
    for (const text of ['extensionProviders: {}', 'extensionProviders: [{}]', 'extensionProviders: [{ name: a, opentelemetry: {} }]'])
      assert.throws(() => readMeshConfig(stored(text)), /extensionProviders/);
  });

  it('says which field it cannot use', () => {
    for (const [text, problem] of [
      ['outboundTrafficPolicy: { mode: SOME }', /outboundTrafficPolicy\.mode: "SOME" is not known here: ALLOW_ANY or REGISTRY_ONLY/],
      ['outboundTrafficPolicy: REGISTRY_ONLY', /outboundTrafficPolicy\.mode/],
      ['protocolDetectionTimeout: soon', /protocolDetectionTimeout: "soon" is no duration/],
      ['h2UpgradePolicy: DEFAULT', /h2UpgradePolicy: "DEFAULT" is not known here/],
      ['a: [', /YAML: /],
      ['- a', /must be an object/],
      [7, /must be text in YAML/],
    ] as const)
      assert.throws(() => readMeshConfig(stored(text)), problem);
  });
});
