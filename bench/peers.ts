import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Configuration files of the origin that all proxies forward to, and of the peers that the sidecar is measured against. */

export interface Certificates {
  readonly root: string;
  readonly cert: string;
  readonly key: string;
}

/** `address` is one more that it listens on, beside loopback; `http2Port` one on which it speaks HTTP/2 without TLS. */
export function writeOrigin(folder: string, port: number, address?: string, http2Port?: number): string {
  mkdirSync(join(folder, 'www'), { recursive: true });
  writeFileSync(join(folder, 'www/1k'), 'x'.repeat(1024));
  writeFileSync(join(folder, 'www/1m'), 'x'.repeat(1024 * 1024));
  const file = join(folder, 'origin.conf');
  writeFileSync(
    file,
    `worker_processes 1; daemon off; pid ${folder}/origin.pid; error_log ${folder}/origin.log;
events { worker_connections 8192; }
http { access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path ${folder}/t1; proxy_temp_path ${folder}/t2; fastcgi_temp_path ${folder}/t3; uwsgi_temp_path ${folder}/t4; scgi_temp_path ${folder}/t5;
  server { listen 127.0.0.1:${port} backlog=4096; ${address === undefined ? '' : `listen ${address}:${port} backlog=4096;`} ${http2Port === undefined ? '' : `listen 127.0.0.1:${http2Port} http2 backlog=4096;`} root ${folder}/www; default_type text/plain; } }
`,
  );
  return file;
}

export function writeNginx(
  folder: string,
  ports: { readonly plain: number; readonly tls: number; readonly origin: number },
  { cert, key }: Certificates,
): string {
  const file = join(folder, 'nginx.conf');
  const location = `location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Request-Id $request_id; }`;
  writeFileSync(
    file,
    `worker_processes 1; daemon off; pid ${folder}/nginx.pid; error_log ${folder}/nginx.log;
events { worker_connections 8192; }
http { access_log ${folder}/nginx.access.log combined buffer=64k flush=1s; keepalive_requests 1000000; client_body_temp_path ${folder}/n1; proxy_temp_path ${folder}/n2; fastcgi_temp_path ${folder}/n3; uwsgi_temp_path ${folder}/n4; scgi_temp_path ${folder}/n5;
  upstream origin { server 127.0.0.1:${ports.origin}; keepalive 64; keepalive_requests 1000000; }
  server { listen 127.0.0.1:${ports.plain} backlog=4096; ${location} }
  server { listen 127.0.0.1:${ports.tls} ssl backlog=4096; ssl_certificate ${cert}; ssl_certificate_key ${key}; ssl_protocols TLSv1.3; ${location} } }
`,
  );
  return file;
}

export function writeHaproxy(folder: string, ports: { readonly plain: number; readonly tcp: number; readonly origin: number }): string {
  const file = join(folder, 'haproxy.cfg');
  writeFileSync(
    file,
    `global
  nbthread 1
  maxconn 8192
defaults
  timeout client 60s
  timeout server 60s
  timeout connect 5s
frontend in
  mode http
  option forwardfor
  bind 127.0.0.1:${ports.plain}
  unique-id-format %[uuid()]
  unique-id-header X-Request-ID
  default_backend origin
backend origin
  mode http
  http-reuse always
  server origin 127.0.0.1:${ports.origin}
frontend tcp
  mode tcp
  bind 127.0.0.1:${ports.tcp}
  default_backend tcp_origin
backend tcp_origin
  mode tcp
  server origin 127.0.0.1:${ports.origin}
`,
  );
  return file;
}

/** HTTP/2 without TLS on both sides. */
export function writeHttp2Haproxy(
  folder: string,
  ports: { readonly h2: number; readonly origin: number; readonly fast: number; readonly fastOrigin: number },
): string {
  const file = join(folder, 'haproxy-h2.cfg');
  writeFileSync(
    file,
    `global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  option forwardfor
  unique-id-format %[uuid()]
  unique-id-header X-Request-ID
  http-reuse always
frontend in
  bind 127.0.0.1:${ports.h2} proto h2
  default_backend origin
backend origin
  server origin 127.0.0.1:${ports.origin} proto h2
frontend up
  bind 127.0.0.1:${ports.fast} proto h2
  default_backend sink
backend sink
  server sink 127.0.0.1:${ports.fastOrigin} proto h2
`,
  );
  return file;
}

export type Json = { readonly [key: string]: unknown };
const typed = (name: string, type: string, config: Json = {}): Json => ({ name, typed_config: { '@type': `type.googleapis.com/envoy.${type}`, ...config } });
const address = (port: number): Json => ({ socket_address: { address: '127.0.0.1', port_value: port } });

function manager(name: string, cluster: string, log: string): Json {
  return typed('envoy.filters.network.http_connection_manager', 'extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', {
    stat_prefix: name,
    access_log: [typed('envoy.access_loggers.file', 'extensions.access_loggers.file.v3.FileAccessLog', { path: log })],
    route_config: { name, virtual_hosts: [{ name: 'all', domains: ['*'], routes: [{ match: { prefix: '/' }, route: { cluster, timeout: '0s' } }] }] },
    http_filters: [typed('envoy.filters.http.router', 'extensions.filters.http.router.v3.Router')],
  });
}

function cluster(name: string, port: number, more: Json = {}): Json {
  return {
    name,
    type: 'STATIC',
    connect_timeout: '5s',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: address(port) } }] }] },
    ...more,
  };
}

const keyPair = ({ cert, key }: Certificates) => [{ certificate_chain: { filename: cert }, private_key: { filename: key } }];

/** One process's worth of Envoy configuration: the same file is given to Envoy and to Mizzen. */
export function writeBootstrap(folder: string, name: string, listeners: readonly Json[], clusters: readonly Json[], adminPort?: number): string {
  const file = join(folder, `${name}.json`);
  const admin = adminPort === undefined ? {} : { admin: { address: address(adminPort) } };
  writeFileSync(file, JSON.stringify({ ...admin, static_resources: { listeners, clusters } }));
  return file;
}

const overHttp2: Json = { http2_protocol_options: {} };

/** A proxy that takes HTTP/2 without TLS and speaks it to an origin of files and to one that costs little. */
export function http2Edge(
  folder: string,
  name: string,
  ports: { readonly h2: number; readonly origin: number; readonly fast: number; readonly fastOrigin: number },
) {
  const log = join(folder, `${name}-h2.access.log`);
  return {
    listeners: [
      { name: 'h2', address: address(ports.h2), filter_chains: [{ filters: [manager('in', 'origin', log)] }] },
      { name: 'fast', address: address(ports.fast), filter_chains: [{ filters: [manager('up', 'sink', log)] }] },
    ],
    clusters: [cluster('origin', ports.origin, overHttp2), cluster('sink', ports.fastOrigin, overHttp2)],
  };
}

/** A proxy with a plain, a TLS and a TCP listener, all before the origin. */
export function edge(
  folder: string,
  name: string,
  ports: { readonly plain: number; readonly tls: number; readonly tcp: number; readonly origin: number },
  certificates: Certificates,
) {
  const filter = manager('in', 'origin', join(folder, `${name}.access.log`));
  const transport = typed('envoy.transport_sockets.tls', 'extensions.transport_sockets.tls.v3.DownstreamTlsContext', {
    common_tls_context: {
      tls_certificates: keyPair(certificates),
      tls_params: { tls_minimum_protocol_version: 'TLSv1_3', tls_maximum_protocol_version: 'TLSv1_3' },
    },
  });
  const tcp = typed('envoy.filters.network.tcp_proxy', 'extensions.filters.network.tcp_proxy.v3.TcpProxy', { stat_prefix: 'tcp', cluster: 'origin' });
  return {
    listeners: [
      { name: 'plain', address: address(ports.plain), filter_chains: [{ filters: [filter] }] },
      { name: 'tls', address: address(ports.tls), filter_chains: [{ filters: [filter], transport_socket: transport }] },
      { name: 'tcp', address: address(ports.tcp), filter_chains: [{ filters: [tcp] }] },
    ],
    clusters: [cluster('origin', ports.origin)],
  };
}

/** Two proxies with mutual TLS between them: the one beside the client, and the one beside the server. */
export function pair(
  folder: string,
  name: string,
  ports: { readonly client: number; readonly server: number; readonly origin: number },
  certificates: Certificates,
  over: { readonly hop: 'http1' | 'http2'; readonly origin: 'http1' | 'http2' } = { hop: 'http1', origin: 'http1' },
) {
  const options = (version: 'http1' | 'http2') => (version === 'http2' ? overHttp2 : {});
  const validation = {
    trusted_ca: { filename: certificates.root },
    match_typed_subject_alt_names: [{ san_type: 'URI', matcher: { exact: 'spiffe://bench/ns/default/sa/proxy' } }],
  };
  const common = { tls_certificates: keyPair(certificates), validation_context: validation };
  return {
    client: {
      listeners: [
        { name: 'out', address: address(ports.client), filter_chains: [{ filters: [manager('out', 'server', join(folder, `${name}-client.access.log`))] }] },
      ],
      clusters: [
        cluster('server', ports.server, {
          ...options(over.hop),
          transport_socket: typed('envoy.transport_sockets.tls', 'extensions.transport_sockets.tls.v3.UpstreamTlsContext', {
            common_tls_context: common,
            sni: 'server.bench',
          }),
        }),
      ],
    },
    server: {
      listeners: [
        {
          name: 'in',
          address: address(ports.server),
          filter_chains: [
            {
              filters: [manager('in', 'origin', join(folder, `${name}-server.access.log`))],
              transport_socket: typed('envoy.transport_sockets.tls', 'extensions.transport_sockets.tls.v3.DownstreamTlsContext', {
                common_tls_context: common,
                require_client_certificate: true,
              }),
            },
          ],
        },
      ],
      clusters: [cluster('origin', ports.origin, options(over.origin))],
    },
  };
}
