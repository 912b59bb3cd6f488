import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { LocalityLbSpec, ZoneAwareLbSpec } from '@mizzen/api';
import { defaultMeshConfig } from '../mesh-config.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Instance, Service } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { effectivePolicy } from './destination-policy.ts';
import { isIn, localityGroups, placementFor } from './localities.ts';

const instance = (locality: string, labels: Readonly<Record<string, string>> = {}, weight = 1): Instance => ({
  workload: 'shop',
  namespace: 'default',
  address: '10.0.0.1',
  ports: new Map(),
  labels,
  serviceAccount: 'shop',
  isHealthy: true,
  hasSidecar: true,
  locality,
  weight,
});
const service = (instances: readonly Instance[], more: Partial<Service> = {}) =>
  ({ namespace: 'default', trafficDistribution: undefined, instances, ...more }) as Service;
const viewAt = (locality: string, labels: Readonly<Record<string, string>> = {}) =>
  ({ locality, labels, namespace: 'default', address: '10.1.0.1', workload: 'web' }) as unknown as ProxyView;
const snapshotWith = (services: readonly Service[] = [], config: Partial<MeshSnapshot['meshConfig']> = {}) =>
  ({ services, meshConfig: { ...defaultMeshConfig, ...config } }) as unknown as MeshSnapshot;

/** Groups as `locality:priority:weight`. */
function placed(
  instances: readonly Instance[],
  at: string,
  {
    locality,
    zoneAware,
    outliers = true,
    labels,
    snapshot = snapshotWith(),
    distribution,
  }: {
    readonly locality?: LocalityLbSpec;
    readonly zoneAware?: ZoneAwareLbSpec;
    readonly outliers?: boolean;
    readonly labels?: Readonly<Record<string, string>>;
    readonly snapshot?: MeshSnapshot;
    readonly distribution?: string;
  } = {},
): string[] {
  const view = viewAt(at, labels);
  const policy = effectivePolicy(
    {
      host: 'shop',
      trafficPolicy: {
        ...(outliers ? { outlierDetection: {} } : {}),
        loadBalancer: { ...(locality ? { localityLbSetting: locality } : {}), ...(zoneAware ? { zoneAwareLbSetting: zoneAware } : {}) },
      },
    },
    undefined,
    80,
  );
  const placement = placementFor(policy, service(instances, { trafficDistribution: distribution }), view, snapshot);
  return localityGroups(instances, placement, view, snapshot).map((group) => `${group.locality}:${group.priority}:${group.weight}`);
}

describe('places of endpoints', () => {
  const everywhere = ['eu/1/a', 'eu/1/b', 'eu/2/a', 'us/1/a', 'asia/1/a'].map((locality) => instance(locality));

  it('are within others by whole parts', () => {
    for (const [locality, place, expected] of [
      ['eu/1/a', 'eu', true],
      ['eu/1/a', 'eu/*', true],
      ['eu/1/a', 'eu/1', true],
      ['eu/1/a', 'eu/1/b', false],
      ['eu', 'eu/1', false],
      ['eu-west/1', 'eu', false],
      ['', '*', true],
      ['', 'eu', false],
    ] as const)
      assert.equal(isIn(locality, place), expected, `${locality} in ${place}`);
  });

  it('fail over from the sub-zone to the world, only with outlier detection', () => {
    assert.deepEqual(placed(everywhere, 'eu/1/a'), ['eu/1/a:0:1', 'eu/1/b:1:1', 'eu/2/a:2:1', 'us/1/a:3:1', 'asia/1/a:3:1']);
    assert.deepEqual(placed(everywhere, 'us/9/z'), ['us/1/a:0:1', 'eu/1/a:1:1', 'eu/1/b:1:1', 'eu/2/a:1:1', 'asia/1/a:1:1']);
    assert.deepEqual(placed(everywhere, 'eu/1/a', { outliers: false }), ['eu/1/a:0:1', 'eu/1/b:0:1', 'eu/2/a:0:1', 'us/1/a:0:1', 'asia/1/a:0:1']);
    assert.deepEqual(placed(everywhere, 'eu/1/a', { locality: { enabled: false } }).filter((text) => text.includes(':0:')).length, 5);
  });

  it('fail over to the named region first', () => {
    const locality = { failover: [{ from: 'eu', to: 'asia' }] };
    assert.deepEqual(placed(everywhere, 'eu/1/a', { locality }).slice(-2), ['asia/1/a:3:1', 'us/1/a:4:1']);
  });

  it('are distributed by weight, each endpoint to the narrowest place that names it', () => {
    const locality = { distribute: [{ from: 'eu/1/*', to: { 'eu/*': 70, 'eu/1/b': 20, us: 10 } }] };
    assert.deepEqual(placed(everywhere, 'eu/1/a', { locality }), ['eu/1/b:0:20', 'eu/1/a:0:35', 'eu/2/a:0:35', 'us/1/a:0:10']);
    assert.equal(placed(everywhere, 'asia/1/a', { locality }).length, 5);
  });

  it('are ordered by labels from the first on', () => {
    const instances = [
      instance('eu/1/a', { app: 'x', version: 'v1' }),
      instance('eu/1/b', { app: 'x', version: 'v2' }),
      instance('eu/1/b', { app: 'y', version: 'v2' }),
    ];
    const locality = { failoverPriority: ['app', 'version=v2'] };
    assert.deepEqual(placed(instances, 'eu/1/a', { locality, labels: { app: 'x' } }), ['eu/1/b:0:1', 'eu/1/a:1:1', 'eu/1/b:2:1']);
  });

  it('are near as the service wishes, without outlier detection', () => {
    assert.deepEqual(placed(everywhere, 'eu/1/a', { outliers: false, distribution: 'PreferClose' }), [
      'eu/1/a:0:1',
      'eu/1/b:0:1',
      'eu/2/a:1:1',
      'us/1/a:2:1',
      'asia/1/a:2:1',
    ]);
  });

  it('take what their zone suffices for, and leave the rest to those with room', () => {
    const clients = service([...['eu/1', 'eu/1', 'eu/2', 'eu/3'].map((locality) => ({ ...instance(locality), workload: 'web', address: '10.1.0.1' }))]);
    const snapshot = snapshotWith([clients]);
    const endpoints = ['eu/1', 'eu/1', 'eu/2', 'eu/2', 'eu/2', 'eu/3', 'eu/3', 'eu/3', 'us/1'].map((locality) => instance(locality));
    // Half of the clients are in eu/1, but a quarter of the endpoints: half of the calls stay.
    assert.deepEqual(placed(endpoints, 'eu/1', { zoneAware: {}, snapshot }), ['eu/1:0:5000', 'eu/2:0:2500', 'eu/3:0:2500', 'us/1:1:1']);
    assert.deepEqual(placed(endpoints, 'eu/2', { zoneAware: {}, snapshot }), ['eu/2:0:10000', 'us/1:1:1']);
    assert.equal(placed(endpoints.slice(0, 3), 'eu/1', { zoneAware: {}, snapshot }).length, 2, 'too few endpoints to look at zones');
  });
});
