import type { DestinationSpec, GatewaySpec, HttpRouteSpec, VirtualServiceSpec } from '@mizzen/api';
import { closestName, describeOrigin } from '@mizzen/common';
import { sidecarGateway } from '../apis/resolved-api.ts';
import { delegateOf } from '../delegates.ts';
import { destinationRuleFor } from '../generate/destination-policy.ts';
import { appliesTo, virtualServicesOf } from '../generate/virtual-service-routes.ts';
import { type Configured, hostMatches, type MeshSnapshot, patternsFor, resolveHost } from '../snapshot.ts';
import type { Finding } from './finding.ts';
import { unreachableRoutes } from './unreachable-routes.ts';

/** References of a VirtualService that lead to nothing: hosts, subsets, ports and gateways. An error means that requests would fail. */
export function virtualServiceFindings(virtualService: Configured<VirtualServiceSpec>, snapshot: MeshSnapshot): Finding[] {
  const findings: Finding[] = [];
  const object = `${virtualService.kind} ${virtualService.namespace}/${virtualService.name}`;
  const add = (code: Finding['code'], level: Finding['level'], path: string, message: string) =>
    findings.push({ code, level, object, path, place: placeOf(virtualService, path), message });

  const check = (destination: DestinationSpec, path: string) => {
    const hostname = resolveHost(destination.host, virtualService.namespace, snapshot);
    const service =
      snapshot.servicesByHostname.get(hostname) ??
      patternsFor(hostname)
        .map((pattern) => snapshot.servicesByHostname.get(pattern))
        .find((candidate) => candidate !== undefined);
    if (!service) {
      const names = namesToCompare(snapshot, snapshot.servicesByHostname.size, () =>
        [...snapshot.servicesByHostname.values()].map((candidate) =>
          candidate.kind === 'Service' && candidate.namespace === virtualService.namespace ? candidate.name : candidate.hostname,
        ),
      );
      const near = closestName(destination.host, names);
      add(
        'IST0101',
        'error',
        `${path}.host`,
        `${object} sends traffic to host "${destination.host}", but no Service or ServiceEntry defines it${near ? `: did you mean "${near}"?` : `. Known: ${names.slice(0, 8).join(', ') || (snapshot.servicesByHostname.size === 0 ? 'none' : 'see `mizzen get services`')}.`}`,
      );
      return;
    }
    if (destination.subset) {
      const subsets = destinationRuleFor(service, { namespace: virtualService.namespace, labels: {} }, snapshot)?.spec.subsets ?? [];
      if (!subsets.some((subset) => subset.name === destination.subset)) {
        add(
          'IST0101',
          'error',
          `${path}.subset`,
          `${object} sends traffic to subset "${destination.subset}" of host "${destination.host}", but no DestinationRule defines it. Defined: ${subsets.map((subset) => subset.name).join(', ') || 'none'}.`,
        );
      }
    }
    const port = destination.port?.number;
    if (port !== undefined && !service.ports.some((candidate) => candidate.number === port)) {
      add(
        'IST0101',
        'error',
        `${path}.port.number`,
        `${object} sends traffic to port ${port} of host "${destination.host}", which has no such port. Defined: ${service.ports.map((candidate) => candidate.number).join(', ') || 'none'}.`,
      );
    }
  };
  for (const [i, route] of (virtualService.spec.http ?? []).entries()) {
    const path = `spec.http[${i}]`;
    for (const [j, target] of (route.route ?? []).entries()) check(target.destination, `${path}.route[${j}].destination`);
    if (route.mirror) check(route.mirror, `${path}.mirror`);
    for (const [j, mirror] of (route.mirrors ?? []).entries()) if (mirror.destination) check(mirror.destination, `${path}.mirrors[${j}].destination`);
    if (route.delegate) delegateFindings(route, virtualService, snapshot, (level, message) => add('IST0101', level, `${path}.delegate`, message));
  }
  for (const { route, match, by } of unreachableRoutes(virtualService.spec.http ?? [])) {
    const path = match === undefined ? `spec.http[${route}]` : `spec.http[${route}].match[${match}]`;
    const what = match === undefined ? 'this route gets no requests' : 'this match gets no requests';
    add(
      match === undefined ? 'IST0130' : 'IST0131',
      match === undefined ? 'warning' : 'info',
      path,
      `${object}, ${path}: ${what}, since http[${by}] before it takes all that it is for.`,
    );
  }
  for (const [path, sum] of unusualWeights(virtualService.spec))
    add('MZ0001', 'info', path, `${object}, ${path}: the weights add up to ${sum}; they count as shares of ${sum}, not of 100.`);
  for (const kind of ['tcp', 'tls'] as const)
    for (const [i, route] of (virtualService.spec[kind] ?? []).entries())
      for (const [j, target] of (route.route ?? []).entries()) check(target.destination, `spec.${kind}[${i}].route[${j}].destination`);
  findings.push(...conflictFindings(virtualService, snapshot));
  for (const [i, name] of (virtualService.spec.gateways ?? []).entries()) {
    if (name === 'mesh' || name === sidecarGateway) continue;
    const [namespace, gatewayName] = name.includes('/') ? (name.split('/') as [string, string]) : [virtualService.namespace, name];
    const gateway = gatewaysByName(snapshot).get(`${namespace}/${gatewayName}`);
    if (!gateway) {
      const near = closestName(
        gatewayName,
        namesToCompare(snapshot, snapshot.gateways.length, () => snapshot.gateways.map((candidate) => candidate.name)),
      );
      add(
        'IST0101',
        'warning',
        `spec.gateways[${i}]`,
        `${object} is bound to Gateway "${name}", which does not exist${near ? `: did you mean "${near}"?` : '.'}`,
      );
    } else if (!virtualService.spec.hosts?.some((host) => gatewayHolds(gateway.spec, host))) {
      add('IST0132', 'warning', 'spec.hosts', `${object}: none of its hosts is among the hosts of Gateway "${name}", so it receives nothing from there.`);
    }
  }
  return findings;
}

/** Lists of several weights that do not add up to 100, which Istio once demanded and people still mean: where, and what they add up to. */
function unusualWeights(spec: VirtualServiceSpec): [path: string, sum: number][] {
  return (['http', 'tcp', 'tls'] as const).flatMap((kind) =>
    (spec[kind] ?? []).flatMap(({ route }, i): [string, number][] => {
      const sum = (route ?? []).reduce((total, { weight }) => total + (weight ?? 0), 0);
      return (route?.length ?? 0) < 2 || sum === 100 ? [] : [[`spec.${kind}[${i}].route`, sum]];
    }),
  );
}

function delegateFindings(
  route: HttpRouteSpec,
  root: Configured<VirtualServiceSpec>,
  snapshot: MeshSnapshot,
  add: (level: Finding['level'], message: string) => void,
): void {
  const object = `${root.kind} ${root.namespace}/${root.name}`;
  const { name, namespace = root.namespace } = route.delegate!;
  const delegate = delegateOf(route, root, snapshot.virtualServices);
  if (!delegate) {
    const exists = virtualServiceNames(snapshot).has(`${namespace}/${name}`);
    const why = exists ? 'which has hosts of its own, or is not exported to here' : 'which does not exist';
    add('error', `${object} leaves a route to the VirtualService ${namespace}/${name}, ${why}. A delegate is a VirtualService without hosts and gateways.`);
  } else if (delegate.spec.http?.some((leaf) => leaf.delegate))
    add('warning', `${object}: its delegate ${namespace}/${name} leaves routes to others itself; those are left out, a delegate has none.`);
}

/** Several objects that hold one host for the mesh: the oldest has it, and the others do nothing there. */
function conflictFindings(virtualService: Configured<VirtualServiceSpec>, snapshot: MeshSnapshot): Finding[] {
  if (!appliesTo(virtualService, 'mesh')) return [];
  const { byHost } = virtualServicesOf(snapshot);
  return (virtualService.spec.hosts ?? []).flatMap((host, i): Finding[] => {
    const holder = byHost.get(resolveHost(host, virtualService.namespace, snapshot))?.find((other) => appliesTo(other, 'mesh'));
    // Itself, when it is the oldest.
    if (holder === undefined || holder === virtualService) return [];
    const object = `${virtualService.kind} ${virtualService.namespace}/${virtualService.name}`;
    return [
      {
        code: 'IST0109',
        level: 'warning',
        object,
        path: `spec.hosts[${i}]`,
        place: placeOf(virtualService, `spec.hosts[${i}]`),
        message: `${object}: ${holder.kind} ${holder.namespace}/${holder.name} holds host "${virtualService.spec.hosts![i]}" for the mesh already, being older. Put the routes into one object, or use delegates.`,
      },
    ];
  });
}

/** Names that all suggestions for one snapshot are compared with. What is beyond gets no suggestion, since each costs a look at every name. */
const maxComparisons = 200_000;
const comparisons = new WeakMap<object, number>();

function namesToCompare({ services }: MeshSnapshot, count: number, names: () => string[]): string[] {
  const spent = (comparisons.get(services) ?? 0) + count;
  if (spent > maxComparisons) return [];
  comparisons.set(services, spent);
  return names();
}

const gatewayNames = new WeakMap<object, ReadonlyMap<string, Configured<GatewaySpec>>>();

function gatewaysByName({ gateways }: MeshSnapshot): ReadonlyMap<string, Configured<GatewaySpec>> {
  let found = gatewayNames.get(gateways);
  if (found === undefined) {
    found = new Map(gateways.map((gateway) => [`${gateway.namespace}/${gateway.name}`, gateway]));
    gatewayNames.set(gateways, found);
  }
  return found;
}

const objectNames = new WeakMap<object, ReadonlySet<string>>();

function virtualServiceNames({ virtualServices }: MeshSnapshot): ReadonlySet<string> {
  let found = objectNames.get(virtualServices);
  if (found === undefined) {
    found = new Set(virtualServices.map(({ namespace, name }) => `${namespace}/${name}`));
    objectNames.set(virtualServices, found);
  }
  return found;
}

function gatewayHolds(gateway: GatewaySpec, host: string): boolean {
  return (gateway.servers ?? []).some((server) =>
    server.hosts.some((pattern) => hostMatches(pattern.slice(pattern.indexOf('/') + 1), host) || hostMatches(host, pattern.slice(pattern.indexOf('/') + 1))),
  );
}

/** DestinationRules for nothing, and subsets that select no workload (which only warns: it may come later). */
export function destinationRuleFindings(snapshot: MeshSnapshot): Finding[] {
  const findings: Finding[] = [];
  const byHostname = Map.groupBy(snapshot.services, ({ hostname }) => hostname);
  for (const rule of snapshot.destinationRules) {
    const object = `DestinationRule ${rule.namespace}/${rule.name}`;
    const host = resolveHost(rule.spec.host, rule.namespace, snapshot);
    const services = host.startsWith('*') ? snapshot.services.filter((service) => hostMatches(host, service.hostname)) : (byHostname.get(host) ?? []);
    if (services.length === 0)
      findings.push({
        code: 'IST0174',
        level: 'warning',
        object,
        path: 'spec.host',
        place: placeOf(rule, 'spec.host'),
        message: `${object} is for host "${rule.spec.host}", but no Service or ServiceEntry defines it.`,
      });
    for (const [i, subset] of (rule.spec.subsets ?? []).entries()) {
      if (Object.keys(subset.labels ?? {}).length === 0 && !subset.trafficPolicy)
        findings.push({
          code: 'MZ0002',
          level: 'warning',
          object,
          path: `spec.subsets[${i}]`,
          place: placeOf(rule, `spec.subsets[${i}]`),
          message: `${object}: subset "${subset.name}" has neither labels nor a trafficPolicy, so it holds all workloads of "${rule.spec.host}". Give it the labels of those that are meant.`,
        });
      const isEmpty =
        services.length > 0 &&
        services.every(
          (service) => !service.instances.some((instance) => Object.entries(subset.labels ?? {}).every(([name, value]) => instance.labels[name] === value)),
        );
      if (isEmpty)
        findings.push({
          code: 'IST0173',
          level: 'info',
          object,
          path: `spec.subsets[${i}].labels`,
          place: placeOf(rule, `spec.subsets[${i}]`),
          message: `${object}: no workload of "${rule.spec.host}" has the labels of subset "${subset.name}"; requests to it are answered with 503.`,
        });
    }
  }
  return findings;
}

/** Sidecars that claim the same workloads: only the oldest of them counts. */
export function sidecarFindings(snapshot: MeshSnapshot): Finding[] {
  const seen = new Map<string, string>();
  return snapshot.sidecars.flatMap((sidecar): Finding[] => {
    const labels = Object.entries(sidecar.spec.workloadSelector?.labels ?? {}).sort();
    const key = `${sidecar.namespace}/${JSON.stringify(labels)}`;
    const object = `Sidecar ${sidecar.namespace}/${sidecar.name}`;
    const first = seen.get(key);
    seen.set(key, first ?? object);
    if (first === undefined) return [];
    const isForAll = labels.length === 0;
    const what = isForAll ? 'is for all workloads of the namespace' : 'selects the same workloads';
    return [
      {
        code: isForAll ? 'IST0111' : 'IST0110',
        level: 'warning',
        object,
        path: 'spec.workloadSelector',
        place: placeOf(sidecar, 'spec.workloadSelector'),
        message: `${object} has no effect: ${first}, which is older, ${what} too.`,
      },
    ];
  });
}

/** The file and line that a person can go to; an object that came through the API without one has no such place. */
function placeOf(config: Configured<unknown>, path?: string): string {
  return config.origin.source === 'file' ? describeOrigin(config.origin, path) : '';
}
