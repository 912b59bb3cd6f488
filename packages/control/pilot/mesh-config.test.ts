import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { StoredResource } from '../galley/config-store.ts';
import { defaultMeshConfig, readMeshConfig } from './mesh-config.ts';
import { meshConfigNotes } from './mesh-config-fields.ts';

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

  it('reads what is said of TLS inside the mesh, and refuses versions that it cannot demand', () => {
    assert.equal(readMeshConfig(stored('meshMTLS: { minProtocolVersion: TLSV1_3 }')).minMeshTls, 'TLSV1_3');
    assert.equal(readMeshConfig(stored('enableAutoMtls: false')).hasAutoMtls, false);
    assert.throws(() => readMeshConfig(stored('meshMTLS: { minProtocolVersion: TLSV1_1 }')), /meshMTLS\.minProtocolVersion: "TLSV1_1" is not supported/);
    assert.throws(() => readMeshConfig(stored('enableAutoMtls: maybe')), /enableAutoMtls: "maybe" is not a boolean/);
  });

  it('names every field that does not exist or has no effect', () => {
    const notes = (text: string) => meshConfigNotes(text).map(({ level, message }) => `${level} ${message}`);
    assert.deepEqual(notes('outboundTrafficPolicy: { mode: REGISTRY_ONLY }\nenableAutoMtls: true\nmeshMTLS: { minProtocolVersion: TLSV1_3 }'), []);
    assert.deepEqual(notes('outboundTraficPolicy: { mode: REGISTRY_ONLY }'), [
      'error outboundTraficPolicy: unknown field: did you mean outboundTrafficPolicy?',
    ]);
    assert.deepEqual(notes('outboundTrafficPolicy: { mod: REGISTRY_ONLY }'), ['error outboundTrafficPolicy.mod: unknown field: did you mean mode?']);
    assert.deepEqual(notes('accessLogFormat: x\ndefaultHttpRetryPolicy: {}\ndiscoverySelectors: []'), [
      'warning accessLogFormat has no effect',
      'warning defaultHttpRetryPolicy has no effect',
      'warning discoverySelectors has no effect',
    ]);
    assert.deepEqual(notes('defaultProviders: { tracing: [a], metrics: [b] }'), ['warning defaultProviders.metrics has no effect']);
    assert.deepEqual(notes('localityLbSetting: { failoverPriorities: [] }'), [
      'error localityLbSetting.failoverPriorities: unknown field: did you mean failoverPriority?',
    ]);
    assert.deepEqual(notes('extensionProviders: [{ name: a, zipkin: { service: z, port: 9411 } }, { name: b, envoyExtAuthzHTTP: {} }]'), [
      'warning extensionProviders[0].zipkin has no effect',
      'error extensionProviders[1].envoyExtAuthzHTTP: unknown field: did you mean envoyExtAuthzHttp?',
    ]);
    assert.deepEqual(notes('extensionProviders: [{ name: a, envoyExtAuthzHttp: { service: a, port: 1, failClosed: true, includeHeaderInCheck: [x] } }]'), [
      'error extensionProviders[0].envoyExtAuthzHttp.failClosed: unknown field',
      'error extensionProviders[0].envoyExtAuthzHttp.includeHeaderInCheck: unknown field: did you mean includeHeadersInCheck?',
    ]);
    assert.deepEqual(notes('extensionProviders: [{ name: a, opentelemetry: { service: a, port: 1, maxTagLength: 5 } }]'), [
      'warning extensionProviders[0].opentelemetry.maxTagLength has no effect',
    ]);
    assert.match(notes('tlsDefaults: {}')[0]!, /^error tlsDefaults is not enforced/);
    assert.match(notes('meshMTLS: { cipherSuites: [] }')[0]!, /^error meshMTLS\.cipherSuites is not enforced/);
    assert.match(notes('defaultVirtualServiceExportTo: ["."]')[0]!, /is not enforced/);
  });
});
