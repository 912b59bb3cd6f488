import type { LocalityLbSpec, ZoneAwareLbSpec } from '@mizzen/api';
import type { ProxyView } from '../proxy-view.ts';
import type { Instance, Service } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import type { EffectivePolicy } from './destination-policy.ts';

/** Endpoints of one place at one priority, as a load assignment carries them. */
export interface LocalityGroup {
  /** `region/zone/sub-zone`, the latter two optional. */
  readonly locality: string;
  readonly instances: readonly Instance[];
  readonly weight: number;
  /** 0 is first; those behind it get what those before it are not healthy enough for. */
  readonly priority: number;
}

/** What one client's place says about where its calls go (istio/api destination_rule.proto `LocalityLoadBalancerSetting`). */
export type Placement =
  | { readonly kind: 'none' }
  | { readonly kind: 'distribute'; readonly to: readonly (readonly [string, number])[] }
  | { readonly kind: 'failover'; readonly labels: readonly string[]; readonly regions: LocalityLbSpec['failover']; readonly isByRegion: boolean }
  | { readonly kind: 'zone-aware'; readonly setting: ZoneAwareLbSpec };

/** The rule's word, else the service's preference, else the mesh's. Failover is for clusters that find out which endpoints fail. */
export function placementFor(policy: EffectivePolicy, service: Service, view: ProxyView, snapshot: MeshSnapshot): Placement {
  const own = policy.loadBalancer;
  if (own?.zoneAwareLbSetting) return zoneAware(own.zoneAwareLbSetting);
  if (own?.localityLbSetting) return byLocality(own.localityLbSetting, policy.outlierDetection !== undefined, view);
  const preferred = preferredLabels[service.trafficDistribution ?? ''];
  if (preferred) return { kind: 'failover', labels: preferred, regions: [], isByRegion: false };
  const { zoneAwareLbSetting, localityLbSetting } = snapshot.meshConfig;
  if (zoneAwareLbSetting) return zoneAware(zoneAwareLbSetting);
  return byLocality(localityLbSetting, policy.outlierDetection !== undefined, view);
}

const none: Placement = { kind: 'none' };

function zoneAware(setting: ZoneAwareLbSpec): Placement {
  return setting.enabled === false ? none : { kind: 'zone-aware', setting };
}

function byLocality(setting: LocalityLbSpec, findsFailures: boolean, view: ProxyView): Placement {
  if (setting.enabled === false) return none;
  if (setting.distribute?.length) {
    const chosen = setting.distribute.find(({ from }) => isIn(view.locality, from ?? '*'));
    return chosen ? { kind: 'distribute', to: Object.entries(chosen.to ?? {}).sort(bySpecificity) } : none;
  }
  if (!findsFailures) return none;
  const labels = setting.failoverPriority ?? [];
  return { kind: 'failover', labels, regions: setting.failover ?? [], isByRegion: labels.length === 0 || (setting.failover?.length ?? 0) > 0 };
}

/** An endpoint belongs to the narrowest of the places that name it. */
const bySpecificity = ([a]: readonly [string, number], [b]: readonly [string, number]) => specificity(b) - specificity(a);
const specificity = (place: string) => place.split('/').filter((part) => part !== '*' && part !== '').length;

const regionLabel = 'topology.kubernetes.io/region';
const zoneLabel = 'topology.kubernetes.io/zone';
const subzoneLabel = 'topology.istio.io/subzone';
const networkLabel = 'topology.istio.io/network';
const hostnameLabel = 'kubernetes.io/hostname';

const sameZone = [networkLabel, regionLabel, zoneLabel];
/** Kubernetes' Service `trafficDistribution`. */
const preferredLabels: Readonly<Record<string, readonly string[]>> = {
  PreferClose: sameZone,
  PreferSameZone: sameZone,
  PreferSameNode: [...sameZone, subzoneLabel, hostnameLabel],
};

/** Whether a place is within another: `region/zone/sub-zone`, where `*` or nothing is any. */
export function isIn(locality: string, place: string): boolean {
  const own = locality.split('/');
  for (const [i, part] of place.split('/').entries()) {
    if (part === '*') return true;
    if (part !== (own[i] ?? '')) return part === '' && i > 0;
  }
  return true;
}

/** The groups of a cluster's endpoints as one client shall use them. */
export function localityGroups(instances: readonly Instance[], placement: Placement, view: ProxyView, snapshot: MeshSnapshot): LocalityGroup[] {
  const groups = groupBy(instances, ({ locality }) => locality).map(
    ([locality, members]): LocalityGroup => ({ locality, instances: members, weight: weightOf(members), priority: 0 }),
  );
  switch (placement.kind) {
    case 'none':
      return groups;
    case 'distribute':
      return distributed(groups, placement.to);
    case 'failover':
      return inOrder(byRegionOrder(byLabels(groups, placement.labels, view), placement, view));
    case 'zone-aware': {
      const { setting } = placement;
      const ordered = byLabels(groups, setting.failoverPriority ?? [], view).map((group) => ({
        ...group,
        priority: group.priority * 3 + regionDistance(group.locality, setting, view),
      }));
      return zoneAwareWeights(inOrder(ordered), setting, view, snapshot);
    }
  }
}

function groupBy(instances: readonly Instance[], keyOf: (instance: Instance) => string): [string, Instance[]][] {
  const groups = new Map<string, Instance[]>();
  for (const instance of instances) {
    const key = keyOf(instance);
    const group = groups.get(key);
    if (group) group.push(instance);
    else groups.set(key, [instance]);
  }
  return [...groups];
}

const weightOf = (instances: readonly Instance[]) => instances.reduce((sum, instance) => sum + instance.weight, 0);

/** A place's share is divided among its groups by their own weights; what no place names gets nothing. */
function distributed(groups: readonly LocalityGroup[], to: readonly (readonly [string, number])[]): LocalityGroup[] {
  const left = new Set(groups);
  return to.flatMap(([place, share]) => {
    const matching = [...left].filter(({ locality }) => isIn(locality, place));
    for (const group of matching) left.delete(group);
    const total = matching.reduce((sum, group) => sum + group.weight, 0);
    return matching.filter(({ weight }) => weight > 0).map((group) => ({ ...group, weight: Math.ceil((group.weight * share) / total) }));
  });
}

/** Endpoints that agree with the client in all labels come first, then those that differ only in the last, and so on. */
function byLabels(groups: readonly LocalityGroup[], labels: readonly string[], view: ProxyView): LocalityGroup[] {
  if (labels.length === 0) return [...groups];
  const wanted = labels.map((label) => {
    const [name = '', value] = label.split('=');
    return { name, value: value ?? labelOf(view.labels, view.locality, name) };
  });
  const priorityOf = (instance: Instance): number => {
    let adjusted = 0;
    for (const [i, { name, value }] of wanted.entries()) {
      if (labelOf(instance.labels, instance.locality, name) === value) continue;
      // Another network is worse than anything in one's own.
      if (i === 0 && name === networkLabel) adjusted = wanted.length;
      else return wanted.length - i + adjusted;
    }
    return adjusted;
  };
  return groups.flatMap((group) =>
    groupBy(group.instances, (instance) => String(priorityOf(instance))).map(([priority, instances]) => ({
      ...group,
      instances,
      weight: weightOf(instances),
      priority: Number(priority),
    })),
  );
}

/** Places are known by labels too, whether or not somebody has written those. */
function labelOf(labels: Readonly<Record<string, string>>, locality: string, name: string): string {
  const [region = '', zone = '', subzone = ''] = locality.split('/');
  const known: Readonly<Record<string, string>> = { [regionLabel]: region, [zoneLabel]: zone, [subzoneLabel]: subzone };
  return labels[name] ?? known[name] ?? '';
}

function byRegionOrder(groups: readonly LocalityGroup[], { regions = [], isByRegion }: Extract<Placement, { kind: 'failover' }>, view: ProxyView) {
  if (!isByRegion) return groups;
  const [region = '', zone = '', subzone = ''] = view.locality.split('/');
  const failover = regions.find(({ from }) => from === region);
  return groups.map((group) => {
    const [ofRegion = '', ofZone = '', ofSubzone = ''] = group.locality.split('/');
    const distance = ofRegion !== region ? (failover && failover.to !== ofRegion ? 4 : 3) : ofZone !== zone ? 2 : ofSubzone !== subzone ? 1 : 0;
    return { ...group, priority: group.priority * 5 + distance };
  });
}

function regionDistance(locality: string, { failover = [] }: ZoneAwareLbSpec, view: ProxyView): number {
  const regionOf = (place: string) => place.split('/')[0] ?? '';
  const own = regionOf(view.locality);
  if (regionOf(locality) === own) return 0;
  return failover.find(({ from }) => from === own)?.to === regionOf(locality) ? 1 : 2;
}

/** Priorities without gaps, which Envoy demands. */
function inOrder(groups: readonly LocalityGroup[]): LocalityGroup[] {
  const used = [...new Set(groups.map(({ priority }) => priority))].sort((a, b) => a - b);
  return groups.map((group) => ({ ...group, priority: used.indexOf(group.priority) })).sort((a, b) => a.priority - b.priority);
}

/** Envoy's `min_cluster_size`. */
const defaultMinimum = 6;

/**
 * Calls stay in the client's zone as far as its endpoints there suffice: when the zone has as large a share of the endpoints as of the clients, all
 * of them; else so many that every endpoint gets the same, the rest going where there is more than that zone's own clients need (Envoy, "zone aware
 * routing"). Envoy finds out in each proxy what we, who see both sides, say as weights of localities.
 */
function zoneAwareWeights(groups: readonly LocalityGroup[], setting: ZoneAwareLbSpec, view: ProxyView, snapshot: MeshSnapshot): LocalityGroup[] {
  const first = groups.filter(({ priority, instances }) => priority === 0 && instances.some(({ isHealthy }) => isHealthy));
  const healthy = (group: LocalityGroup) => group.instances.filter(({ isHealthy }) => isHealthy).length;
  const total = first.reduce((sum, group) => sum + healthy(group), 0);
  const clients = clientsByLocality(view, snapshot);
  const clientTotal = [...clients.values()].reduce((sum, count) => sum + count, 0);
  const own = first.find(({ locality }) => locality === view.locality);
  if (!own || clientTotal === 0 || total < (setting.minClusterSize ?? defaultMinimum)) return [...groups];
  const shareOfClients = (locality: string) => (clients.get(locality) ?? 0) / clientTotal;
  const shareOfEndpoints = (group: LocalityGroup) => healthy(group) / total;
  const precision = 10_000;
  if (shareOfEndpoints(own) >= shareOfClients(view.locality))
    return groups
      .flatMap((group) => (group.priority > 0 ? [group] : group === own ? [{ ...group, weight: precision }] : [{ ...group, instances: [], weight: 0 }]))
      .filter(({ instances }) => instances.length > 0);
  const stays = shareOfEndpoints(own) / shareOfClients(view.locality);
  const spare = (group: LocalityGroup) => Math.max(0, shareOfEndpoints(group) - shareOfClients(group.locality));
  const spareTotal = first.reduce((sum, group) => sum + (group === own ? 0 : spare(group)), 0);
  return groups
    .map((group) => {
      if (group.priority > 0) return group;
      const share = group === own ? stays : spareTotal === 0 ? 0 : ((1 - stays) * spare(group)) / spareTotal;
      return { ...group, weight: Math.round(share * precision) };
    })
    .filter(({ priority, weight }) => priority > 0 || weight > 0);
}

/** Where the client's own replicas are: those of the first service that it is part of. */
function clientsByLocality(view: ProxyView, snapshot: MeshSnapshot): Map<string, number> {
  const service = snapshot.services.find(
    (candidate) =>
      candidate.namespace === view.namespace && candidate.instances.some(({ address, workload }) => address === view.address && workload === view.workload),
  );
  const counts = new Map<string, number>();
  for (const { locality, isHealthy } of service?.instances ?? []) if (isHealthy) counts.set(locality, (counts.get(locality) ?? 0) + 1);
  return counts;
}

/** Whether a cluster's localities have weights that count. */
export function weighsLocalities(placement: Placement): boolean {
  return (
    placement.kind === 'distribute' ||
    placement.kind === 'zone-aware' ||
    (placement.kind === 'failover' && (placement.labels.length > 0 || (placement.regions?.length ?? 0) > 0))
  );
}
