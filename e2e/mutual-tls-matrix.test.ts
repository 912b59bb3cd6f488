import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { findKind } from '@mizzen/api';
import { call } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

type Mode = 'STRICT' | 'PERMISSIVE' | 'DISABLE';
type Outcome = 'mutual TLS' | 'plain text' | 'refused';

/** Who calls, and what Istio's documents say comes of it, by the mode that is in effect at the port. */
const expected: Readonly<Record<string, Readonly<Record<Mode, Outcome>>>> = {
  'a sidecar': { STRICT: 'mutual TLS', PERMISSIVE: 'mutual TLS', DISABLE: 'plain text' },
  'a sidecar that is told ISTIO_MUTUAL': { STRICT: 'mutual TLS', PERMISSIVE: 'mutual TLS', DISABLE: 'refused' },
  'a sidecar that is told DISABLE': { STRICT: 'refused', PERMISSIVE: 'plain text', DISABLE: 'plain text' },
  'somebody without a sidecar': { STRICT: 'refused', PERMISSIVE: 'plain text', DISABLE: 'plain text' },
};

const policy = (name: string, namespace: string, spec: string) =>
  `---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: { name: ${name}, namespace: ${namespace} }\nspec: ${spec}\n`;
const mesh_ = (mode: string) => policy('default', 'istio-system', `{ mtls: { mode: ${mode} } }`);
const namespace = (mode: string) => policy('default', 'default', `{ mtls: { mode: ${mode} } }`);
const workload = (mode: string, ports = '') => policy('web', 'default', `{ selector: { matchLabels: { app: web } }, mtls: { mode: ${mode} }${ports} }`);
const ports = (mode: string, port = 9080) => `, portLevelMtls: { ${port}: { mode: ${mode} } }`;

/** What is configured, and the mode that holds in the end. */
const settings: readonly (readonly [what: string, yaml: string, mode: Mode])[] = [
  ['nothing', '', 'PERMISSIVE'],
  ['the mesh STRICT', mesh_('STRICT'), 'STRICT'],
  ['the mesh DISABLE', mesh_('DISABLE'), 'DISABLE'],
  ['the mesh STRICT, the namespace PERMISSIVE', mesh_('STRICT') + namespace('PERMISSIVE'), 'PERMISSIVE'],
  ['the mesh STRICT, the namespace UNSET', mesh_('STRICT') + namespace('UNSET'), 'STRICT'],
  ['the namespace STRICT, the workload DISABLE', namespace('STRICT') + workload('DISABLE'), 'DISABLE'],
  ['the namespace DISABLE, the workload UNSET', namespace('DISABLE') + workload('UNSET'), 'DISABLE'],
  ['the workload STRICT, its port DISABLE', workload('STRICT', ports('DISABLE')), 'DISABLE'],
  ['the workload DISABLE, its port STRICT', workload('DISABLE', ports('STRICT')), 'STRICT'],
  ['the workload STRICT, its port UNSET', workload('STRICT', ports('UNSET')), 'STRICT'],
  ['the workload STRICT, another port DISABLE', workload('STRICT', ports('DISABLE', 9999)), 'STRICT'],
  ['the mesh DISABLE, the workload UNSET, its port PERMISSIVE', mesh_('DISABLE') + workload('UNSET', ports('PERMISSIVE')), 'PERMISSIVE'],
];

describe('mutual TLS: who may call whom', () => {
  let mesh: TestMesh;
  let server: RunningProxy;
  let client: RunningProxy;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.apply(service('web'));
    server = await mesh.workload('web');
    client = await mesh.proxy('client');
    await client.proxy.ready;
    await mesh.synced();
  });
  after(() => mesh.close());

  const remove = async (kind: string, where: string, name: string) =>
    mesh.plane.registry.delete(findKind(kind === 'DestinationRule' ? 'networking.istio.io' : 'security.istio.io', kind)!, where, name).catch(() => {});
  const outcomeOf = async (port: number, host: string): Promise<Outcome> => {
    const answer = await call({ port, headers: { host } }).catch(() => undefined);
    if (answer?.status !== 200) return 'refused';
    return (JSON.parse(answer.body) as { headers: Record<string, string> }).headers['x-forwarded-client-cert'] === undefined ? 'plain text' : 'mutual TLS';
  };

  for (const [what, yaml, mode] of settings)
    it(`${what}: ${mode}`, async () => {
      for (const [where, name] of [
        ['istio-system', 'default'],
        ['default', 'default'],
        ['default', 'web'],
      ] as const)
        await remove('PeerAuthentication', where, name);
      if (yaml !== '') await mesh.apply(yaml);
      for (const [who, outcomes] of Object.entries(expected)) {
        const told = /told (\w+)/.exec(who)?.[1];
        await remove('DestinationRule', 'default', 'web');
        if (told !== undefined)
          await mesh.apply(
            `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: { name: web }\nspec: { host: web, trafficPolicy: { tls: { mode: ${told} } } }\n`,
          );
        await mesh.plane.pilot.refresh();
        await mesh.synced();
        const outcome = who.includes('without') ? await outcomeOf(server.inboundPort, 'web') : await outcomeOf(client.outboundPort, 'web:9080');
        assert.equal(outcome, outcomes[mode], who);
      }
    });
});
