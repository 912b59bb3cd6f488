/** A bootstrap by which stock Envoy takes everything from pilot, by plain ADS. */
export function envoyBootstrap(address: string, metadata: Readonly<Record<string, unknown>>, xds: { readonly address: string; readonly port: number }) {
  const http2 = {
    '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
    explicit_http_config: { http2_protocol_options: {} },
  };
  const endpoint = { address: { socket_address: { address: xds.address, port_value: xds.port } } };
  return {
    node: { id: `sidecar~${address}~envoy.default~default.svc.cluster.local`, cluster: 'envoy', metadata },
    dynamic_resources: {
      ads_config: { api_type: 'GRPC', transport_api_version: 'V3', grpc_services: [{ envoy_grpc: { cluster_name: 'xds' } }] },
      lds_config: { ads: {}, resource_api_version: 'V3' },
      cds_config: { ads: {}, resource_api_version: 'V3' },
    },
    static_resources: {
      clusters: [
        {
          name: 'xds',
          type: 'STATIC',
          typed_extension_protocol_options: { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': http2 },
          load_assignment: { cluster_name: 'xds', endpoints: [{ lb_endpoints: [{ endpoint }] }] },
        },
      ],
    },
  };
}
