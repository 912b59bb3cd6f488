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
      outboundTrafficPolicy: 'REGISTRY_ONLY',
      protocolDetectionTimeoutMs: 250,
      upgradesToHttp2: true,
    });
    assert.deepEqual(readMeshConfig(stored('')), defaultMeshConfig);
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
