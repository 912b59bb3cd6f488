import { MizzenError } from '@mizzen/common';
import { ApiClient } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { formatTable, outputFormat, print, printData } from '../output.ts';
import { askProxy } from '../proxy-admin.ts';
import { findProxy, type StatusOptions } from './status.ts';

export const proxyConfigTypes = ['listeners', 'routes', 'clusters', 'endpoints', 'secrets'] as const;
type ProxyConfigType = (typeof proxyConfigTypes)[number];

/** `mizzen proxy-config TYPE PROXY`: what a proxy has in effect, asked of the proxy itself. */
export async function proxyConfig(given: string, name: string, options: StatusOptions): Promise<void> {
  // istioctl's users write one of them.
  const type = proxyConfigTypes.find((one) => one === `${given}s`) ?? given;
  if (!proxyConfigTypes.includes(type as ProxyConfigType))
    throw new MizzenError('bad-option', `there is no "${type}" to show. There is: ${proxyConfigTypes.join(', ')}.`);
  const home = homeOf(options.home);
  const api = new ApiClient(controlAccess(home));
  try {
    const proxy = await findProxy(api, name);
    const ask = (path: string) => askProxy(proxy, path, home);
    const format = outputFormat(options.output);
    if (type === 'secrets') {
      const certs = (await ask('/certs')) as { certificates: { name: string; cert_chain: Certificate[]; ca_cert: Certificate[] }[] };
      if (format !== 'table') return printData(certs, format);
      const row = (secret: string, kind: string, certificate: Certificate) => [
        secret,
        kind,
        certificate.subject_alt_names.join(', ') || certificate.subject,
        certificate.serial_number.slice(0, 16),
        certificate.valid_from.slice(0, 19),
        certificate.expiration_time.slice(0, 19),
      ];
      return print(
        formatTable(
          ['SECRET', 'TYPE', 'NAMES', 'SERIAL', 'FROM', 'UNTIL'],
          certs.certificates.flatMap((entry) => [
            ...entry.cert_chain.map((certificate, i) => row(entry.name, i === 0 ? 'certificate' : 'issuer', certificate)),
            ...entry.ca_cert.map((certificate) => row('ROOTCA', 'root', certificate)),
          ]),
        ),
      );
    }
    const dump = (await ask('/config_dump')) as Dump;
    const resources = dump.configs[type]?.resources ?? [];
    if (format !== 'table') return printData(resources, format);
    print(tables[type as Exclude<ProxyConfigType, 'secrets'>](resources));
  } finally {
    api.close();
  }
}

interface Certificate {
  readonly subject: string;
  readonly subject_alt_names: readonly string[];
  readonly serial_number: string;
  readonly valid_from: string;
  readonly expiration_time: string;
}

/** The JSON of xDS resources, of which only what is shown is named. */
interface Shown {
  readonly name?: string;
  readonly cluster_name?: string;
  readonly type?: string;
  readonly lb_policy?: string;
  readonly traffic_direction?: string;
  readonly address?: SocketAddress;
  readonly filter_chains?: readonly FilterChainShown[];
  readonly default_filter_chain?: FilterChainShown;
  readonly bind_to_port?: boolean;
  readonly virtual_hosts?: readonly { readonly name: string; readonly domains: readonly string[]; readonly routes?: readonly RouteShown[] }[];
  readonly endpoints?: readonly {
    readonly lb_endpoints?: readonly {
      readonly health_status?: string;
      readonly load_balancing_weight?: number;
      readonly endpoint: { readonly address: SocketAddress };
      readonly metadata?: MetadataShown;
    }[];
  }[];
  readonly metadata?: MetadataShown;
  readonly transport_socket?: { readonly name: string };
  readonly transport_socket_matches?: readonly unknown[];
  readonly typed_extension_protocol_options?: Readonly<Record<string, HttpOptionsShown>>;
}

interface HttpOptionsShown {
  readonly use_downstream_protocol_config?: unknown;
  readonly explicit_http_config?: { readonly http2_protocol_options?: unknown };
}

interface FilterChainShown {
  readonly name?: string;
  readonly filter_chain_match?: {
    readonly destination_port?: number;
    readonly prefix_ranges?: readonly { readonly address_prefix: string; readonly prefix_len?: number }[];
    readonly transport_protocol?: string;
    readonly server_names?: readonly string[];
    readonly application_protocols?: readonly string[];
  };
  readonly filters: readonly {
    readonly name: string;
    readonly typed_config?: {
      readonly rds?: { readonly route_config_name: string };
      readonly cluster?: string;
      readonly route_config?: { readonly name?: string };
    };
  }[];
}

interface SocketAddress {
  readonly socket_address: { readonly address: string; readonly port_value: number };
}

interface MetadataShown {
  readonly filter_metadata?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
}

interface RouteShown {
  readonly name?: string;
  readonly match: {
    readonly prefix?: string;
    readonly path_separated_prefix?: string;
    readonly path?: string;
    readonly safe_regex?: { readonly regex: string };
    readonly headers?: readonly { readonly name: string }[];
  };
  readonly route?: {
    readonly cluster?: string;
    readonly weighted_clusters?: { readonly clusters: readonly { readonly name: string; readonly weight: number }[] };
  };
  readonly redirect?: unknown;
  readonly direct_response?: { readonly status: number };
  readonly typed_per_filter_config?: Readonly<Record<string, unknown>>;
  readonly metadata?: MetadataShown;
}

interface Dump {
  readonly configs: Readonly<Record<string, { readonly resources: readonly Shown[] }>>;
}

function addressText(address: SocketAddress | undefined): string {
  if (!address) return '-';
  const { address: host, port_value: port } = address.socket_address;
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** What is spoken to a cluster's endpoints, where it carries HTTP. */
function spokenText(cluster: Shown): string {
  const options = cluster.typed_extension_protocol_options?.['envoy.extensions.upstreams.http.v3.HttpProtocolOptions'];
  if (options === undefined) return '-';
  if (options.use_downstream_protocol_config) return "caller's HTTP";
  return options.explicit_http_config?.http2_protocol_options ? 'HTTP/2' : 'HTTP/1.1';
}

function chainMatchText(match: FilterChainShown['filter_chain_match']): string {
  const parts = [
    match?.destination_port === undefined ? undefined : `port ${match.destination_port}`,
    ...(match?.prefix_ranges ?? []).map((range) => `${range.address_prefix}/${range.prefix_len ?? 0}`),
    match?.transport_protocol === 'raw_buffer' ? 'plain text' : match?.transport_protocol,
    ...(match?.server_names ?? []),
    match?.application_protocols?.join(', '),
  ];
  return parts.filter(Boolean).join(' ') || 'all';
}
const originText = (metadata: MetadataShown | undefined) => String(metadata?.filter_metadata?.['mizzen.provenance']?.['origin'] ?? '-');

const tables = {
  listeners: (resources: readonly Shown[]) =>
    formatTable(
      ['ADDRESS', 'DIRECTION', 'BY', 'MATCH', 'DESTINATION'],
      resources.flatMap((listener) =>
        [...(listener.filter_chains ?? []), ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])].map((chain) => {
          const config = chain.filters[0]?.typed_config;
          return [
            addressText(listener.address),
            (listener.traffic_direction ?? '').toLowerCase(),
            listener.bind_to_port === false ? 'handed over' : 'socket',
            chain === listener.default_filter_chain ? 'all else' : chainMatchText(chain.filter_chain_match),
            config?.rds ? `routes ${config.rds.route_config_name}` : (config?.cluster ?? config?.route_config?.name ?? 'inline routes'),
          ];
        }),
      ),
    ),
  routes: (resources: readonly Shown[]) =>
    formatTable(
      ['TABLE', 'HOST', 'MATCH', 'DESTINATION', 'FROM'],
      resources.flatMap((table) =>
        (table.virtual_hosts ?? []).flatMap((host) =>
          (host.routes ?? []).map((route) => {
            const { match } = route;
            const path =
              match.path ??
              (match.safe_regex
                ? `~${match.safe_regex.regex}`
                : match.path_separated_prefix !== undefined
                  ? `${match.path_separated_prefix}/*`
                  : `${match.prefix ?? ''}*`);
            const target =
              route.route?.cluster ??
              route.route?.weighted_clusters?.clusters.map((cluster) => `${cluster.weight}: ${cluster.name}`).join(', ') ??
              (route.redirect ? 'redirect' : `answers ${route.direct_response?.status}`);
            return [
              table.name ?? '',
              host.name,
              [path, ...(match.headers ?? []).map((header) => header.name)].join(' + '),
              `${target}${route.typed_per_filter_config?.['envoy.filters.http.fault'] ? ' (with fault)' : ''}`,
              originText(route.metadata),
            ];
          }),
        ),
      ),
    ),
  clusters: (resources: readonly Shown[]) =>
    formatTable(
      ['NAME', 'TYPE', 'SPEAKS', 'BALANCING', 'TLS', 'FROM'],
      resources.map((cluster) => [
        cluster.name ?? '',
        cluster.type ?? 'STATIC',
        spokenText(cluster),
        (cluster.lb_policy ?? 'ROUND_ROBIN').toLowerCase(),
        cluster.transport_socket ? 'tls' : cluster.transport_socket_matches?.length ? 'auto' : 'plain',
        originText(cluster.metadata),
      ]),
    ),
  endpoints: (resources: readonly Shown[]) =>
    formatTable(
      ['ENDPOINT', 'HEALTH', 'WORKLOAD', 'CLUSTER'],
      resources.flatMap((assignment) =>
        (assignment.endpoints ?? []).flatMap((group) =>
          (group.lb_endpoints ?? []).map((entry) => [
            addressText(entry.endpoint.address),
            (entry.health_status ?? 'unknown').toLowerCase(),
            String(entry.metadata?.filter_metadata?.['istio']?.['workload'] ?? '-').split(';')[0]!,
            assignment.cluster_name ?? '',
          ]),
        ),
      ),
    ),
} as const;
