import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { StoredResource } from '../../galley/config-store.ts';
import { buildServices } from './build-services.ts';
import { WorkloadBindings } from './workload-bindings.ts';

const stored = (kind: string, spec: unknown, labels = {}): StoredResource => ({
  key: { group: kind === 'Service' ? '' : 'networking.istio.io', kind, namespace: 'default', name: 'shop' },
  resource: { apiVersion: 'v1', kind, metadata: { name: 'shop', namespace: 'default', labels }, spec } as never,
  origin: { source: 'api', name: 'test' },
  revision: 1,
});

function portsOf(port: Record<string, unknown>, own: Record<string, number>): [number, number][] {
  const [service] = buildServices(
    {
      services: [stored('Service', { selector: { app: 'shop' }, ports: [port] })],
      serviceEntries: [],
      workloadEntries: [stored('WorkloadEntry', { address: '10.0.0.1', labels: { app: 'shop' }, ports: own })],
      endpointSlices: [],
      bindings: new WorkloadBindings(),
    },
    'cluster.local',
  );
  return [...(service?.instances[0]?.ports ?? [])];
}

describe('the port of a workload that a port of a service is for', () => {
  it('is the one that a named targetPort names, not the one of the service port’s name', () => {
    assert.deepEqual(portsOf({ name: 'http', port: 80, targetPort: 'web' }, { http: 9000, web: 8080 }), [[80, 8080]]);
  });

  it('is none where the workload does not have the named one', () => {
    const others: Record<string, number>[] = [{ http: 9000 }, { admin: 9000, '80': 9001 }, {}];
    for (const own of others) assert.deepEqual(portsOf({ name: 'http', port: 80, targetPort: 'web' }, own), []);
    assert.deepEqual(portsOf({ name: 'http', port: 80, targetPort: 'constructor' }, {}), []);
  });

  it('is the one of the target’s number before the one of the service port’s name', () => {
    assert.deepEqual(portsOf({ name: 'http', port: 80, targetPort: 8080 }, { http: 9000, '8080': 18_080 }), [[80, 18_080]]);
    assert.deepEqual(portsOf({ name: 'http', port: 80, targetPort: 8080 }, { http: 9000 }), [[80, 9000]]);
    assert.deepEqual(portsOf({ name: 'http', port: 80 }, {}), [[80, 80]]);
  });
});
