import { type Init, packAny } from '@mizzen/envoy-api';
import type { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { OwnedHeadersSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { spiffeUri } from '../../citadel/spiffe-identity.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Service } from '../registry/service.ts';
import type { WorkloadBinding } from '../registry/workload-bindings.ts';
import { mayRoute } from '../route-ownership.ts';
import { type MeshSnapshot, resolveHost, rootNamespace } from '../snapshot.ts';
import { servedGateways } from './served-gateways.ts';
import { trustDomainsOf } from './tls-contexts.ts';
import { isBoundTo } from './virtual-service-routes.ts';

/** What leads to a service from outside: gateways by their service accounts (`NAMESPACE/NAME`), and the headers that they make of claims. */
interface Entrances {
  readonly gateways: Set<string>;
  readonly authenticators: Set<string>;
  readonly claimHeaders: Set<string>;
}

/**
 * The filter that says which callers of a workload may send headers that the mesh owns:
 *
 * | headers                                         | callers                                                                                     |
 * | ----------------------------------------------- | ------------------------------------------------------------------------------------------- |
 * | x-forwarded-for, x-forwarded-client-cert        | gateways of the workload's namespace and of the root namespace, and those that a route leads through |
 * | x-mizzen-consumer, headers of claims            | gateways that serve an Api with login or authentication for the workload                    |
 * | x-mizzen-publisher and the like                 | other versions of the workload, where a MessageRoute passes messages between them           |
 *
 * Routes and Apis count when their namespace may decide about calls to the service (route-ownership.ts): a gateway's owner cannot entitle it.
 */
export function ownedHeadersFilter(view: ProxyView, snapshot: MeshSnapshot): Init<typeof HttpFilterSchema> {
  const services = snapshot.services.filter(({ instances }) =>
    instances.some(
      ({ address, namespace, serviceAccount }) => address === view.address && namespace === view.namespace && serviceAccount === view.serviceAccount,
    ),
  );
  const entrances = entrancesOf(snapshot);
  const found = services.flatMap(({ hostname }) => entrances.get(hostname) ?? []);
  const near = snapshot.gatewayBindings.filter(({ namespace }) => namespace === view.namespace || namespace === rootNamespace).map(accountOf);
  const value = packAny(OwnedHeadersSchema, {
    gateways: identitiesOf([...near, ...found.flatMap(({ gateways }) => [...gateways])], snapshot),
    authenticators: identitiesOf(
      found.flatMap(({ authenticators }) => [...authenticators]),
      snapshot,
    ),
    messengers: identitiesOf(messengersOf(services, snapshot), snapshot),
    claimHeaders: [...new Set(found.flatMap(({ claimHeaders }) => [...claimHeaders]))].sort(),
  });
  // A stock Envoy does not know it, and can do without: it believes what comes by mutual TLS.
  return { name: 'mizzen.filters.http.owned_headers', isOptional: true, configType: { case: 'typedConfig', value } };
}

const accountOf = ({ namespace, serviceAccount }: Pick<WorkloadBinding, 'namespace' | 'serviceAccount'>) => `${namespace}/${serviceAccount}`;

function identitiesOf(accounts: readonly string[], snapshot: MeshSnapshot): string[] {
  return [...new Set(accounts)].sort().flatMap((account) => {
    const [namespace = '', serviceAccount = ''] = account.split('/');
    return trustDomainsOf(snapshot).map((trustDomain) => spiffeUri({ trustDomain, namespace, serviceAccount }));
  });
}

function messengersOf(services: readonly Service[], snapshot: MeshSnapshot): string[] {
  const subscribers = new Set(snapshot.messaging.routes.map(({ namespace, spec }) => resolveHost(spec.subscriber.service, namespace, snapshot)));
  return services
    .filter(({ hostname }) => subscribers.has(hostname))
    .flatMap(({ instances }) => instances.filter((one) => one.serviceAccount !== '').map(accountOf));
}

const computed = new WeakMap<MeshSnapshot, ReadonlyMap<string, Entrances>>();

/** By the host name of the service, for all proxies of one snapshot. */
function entrancesOf(snapshot: MeshSnapshot): ReadonlyMap<string, Entrances> {
  let entrances = computed.get(snapshot);
  if (entrances === undefined) {
    entrances = findEntrances(snapshot);
    computed.set(snapshot, entrances);
  }
  return entrances;
}

function findEntrances(snapshot: MeshSnapshot): Map<string, Entrances> {
  const byHost = new Map<string, Entrances>();
  const accounts = gatewayAccounts(snapshot);
  const accountsFor = (gateways: readonly string[], namespace: string) =>
    [...accounts].flatMap(([gateway, served]) => (isBoundTo(gateways, gateway, namespace) ? [...served] : []));
  /** What is known of a service of the mesh, where objects of `namespace` may decide about calls to it. */
  const entrancesFor = (host: string, namespace: string): Entrances | undefined => {
    const hostname = resolveHost(host, namespace, snapshot);
    const owner = snapshot.servicesByHostname.get(hostname)?.namespace;
    if (owner === undefined || !mayRoute(snapshot.meshConfig.routeOwnership, namespace, owner, '')) return undefined;
    let entrances = byHost.get(hostname);
    if (entrances === undefined) byHost.set(hostname, (entrances = { gateways: new Set(), authenticators: new Set(), claimHeaders: new Set() }));
    return entrances;
  };
  if (accounts.size === 0) return byHost;
  for (const { namespace, spec } of snapshot.virtualServices) {
    const through = accountsFor(spec.gateways ?? [], namespace);
    if (through.length === 0) continue;
    for (const { route = [], source } of spec.http ?? [])
      for (const { destination } of route) {
        // A delegate's routes are its own: names in them are of its namespace.
        const entrances = entrancesFor(destination.host, (source?.object as { readonly namespace: string } | undefined)?.namespace ?? namespace);
        for (const account of through) entrances?.gateways.add(account);
      }
  }
  for (const { api, virtualService } of snapshot.apis) {
    const { login, authentication } = api.spec.policies ?? {};
    if (login === undefined && authentication === undefined) continue;
    const through = accountsFor(virtualService.spec.gateways ?? [], api.namespace);
    if (through.length === 0) continue;
    const entrances = entrancesFor(api.spec.upstream.service, api.namespace);
    if (entrances === undefined) continue;
    for (const account of through) entrances.authenticators.add(account);
    for (const claims of [login?.claimToHeader, ...(authentication?.jwt ?? []).map(({ claimToHeader }) => claimToHeader)])
      for (const header of Object.values(claims ?? {})) entrances.claimHeaders.add(header.toLowerCase());
  }
  return byHost;
}

/** The service accounts of the gateways that serve each Gateway, by `NAMESPACE/NAME` of the Gateway. */
function gatewayAccounts(snapshot: MeshSnapshot): Map<string, Set<string>> {
  const accounts = new Map<string, Set<string>>();
  for (const binding of snapshot.gatewayBindings) {
    const { namespace, labels } = binding;
    for (const gateway of servedGateways({ type: 'gateway', isProven: true, namespace, labels }, snapshot)) {
      const key = `${gateway.namespace}/${gateway.name}`;
      accounts.set(key, (accounts.get(key) ?? new Set()).add(accountOf(binding)));
    }
  }
  return accounts;
}
