import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Configuration files of the peers that the sidecar is measured against, and of the origin that all of them forward to. */
export function writeOrigin(folder: string, port: number): string {
  mkdirSync(join(folder, 'www'), { recursive: true });
  writeFileSync(join(folder, 'www/1k'), 'x'.repeat(1024));
  writeFileSync(join(folder, 'www/1m'), 'x'.repeat(1024 * 1024));
  const file = join(folder, 'origin.conf');
  writeFileSync(
    file,
    `worker_processes 1; daemon off; pid ${folder}/origin.pid; error_log ${folder}/origin.log;
events { worker_connections 4096; }
http { access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path ${folder}/t1; proxy_temp_path ${folder}/t2; fastcgi_temp_path ${folder}/t3; uwsgi_temp_path ${folder}/t4; scgi_temp_path ${folder}/t5;
  server { listen 127.0.0.1:${port} backlog=4096; root ${folder}/www; default_type text/plain; } }
`,
  );
  return file;
}

export function writeNginx(folder: string, port: number, origin: number): string {
  const file = join(folder, 'nginx.conf');
  writeFileSync(
    file,
    `worker_processes 1; daemon off; pid ${folder}/nginx.pid; error_log ${folder}/nginx.log;
events { worker_connections 4096; }
http { access_log ${folder}/nginx.access.log combined buffer=64k flush=1s; keepalive_requests 1000000; client_body_temp_path ${folder}/n1; proxy_temp_path ${folder}/n2; fastcgi_temp_path ${folder}/n3; uwsgi_temp_path ${folder}/n4; scgi_temp_path ${folder}/n5;
  upstream origin { server 127.0.0.1:${origin}; keepalive 64; keepalive_requests 1000000; }
  server { listen 127.0.0.1:${port} backlog=4096;
    location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Request-Id $request_id; } } }
`,
  );
  return file;
}

export function writeHaproxy(folder: string, port: number, origin: number): string {
  const file = join(folder, 'haproxy.cfg');
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
  http-reuse always
  option forwardfor
frontend in
  bind 127.0.0.1:${port}
  unique-id-format %[uuid()]
  unique-id-header X-Request-ID
  default_backend origin
backend origin
  server origin 127.0.0.1:${origin}
`,
  );
  return file;
}

export function writeEnvoy(folder: string, port: number, origin: number): string {
  const file = join(folder, 'envoy.json');
  const config = {
    static_resources: {
      listeners: [
        {
          name: 'in',
          address: { socket_address: { address: '127.0.0.1', port_value: port } },
          filter_chains: [
            {
              filters: [
                {
                  name: 'envoy.filters.network.http_connection_manager',
                  typed_config: {
                    '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
                    stat_prefix: 'in',
                    access_log: [
                      {
                        name: 'envoy.access_loggers.file',
                        typed_config: {
                          '@type': 'type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog',
                          path: join(folder, 'envoy.access.log'),
                        },
                      },
                    ],
                    route_config: {
                      virtual_hosts: [{ name: 'all', domains: ['*'], routes: [{ match: { prefix: '/' }, route: { cluster: 'origin', timeout: '0s' } }] }],
                    },
                    http_filters: [
                      { name: 'envoy.filters.http.router', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } },
                    ],
                  },
                },
              ],
            },
          ],
        },
      ],
      clusters: [
        {
          name: 'origin',
          type: 'STATIC',
          connect_timeout: '5s',
          load_assignment: {
            cluster_name: 'origin',
            endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: '127.0.0.1', port_value: origin } } } }] }],
          },
        },
      ],
    },
  };
  writeFileSync(file, JSON.stringify(config));
  return file;
}
