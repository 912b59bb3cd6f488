import { type TlsParameters, TlsParameters_TlsProtocol } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';

type Version = 'TLSv1.2' | 'TLSv1.3';

/** TLS 1.2 is the least that is spoken, whatever is asked for: older versions are broken (RFC 8996). */
export function protocolVersions(parameters: TlsParameters | undefined): { minVersion: Version; maxVersion: Version } {
  return {
    minVersion: parameters?.tlsMinimumProtocolVersion === TlsParameters_TlsProtocol.TLSv1_3 ? 'TLSv1.3' : 'TLSv1.2',
    maxVersion: parameters?.tlsMaximumProtocolVersion === TlsParameters_TlsProtocol.TLSv1_2 ? 'TLSv1.2' : 'TLSv1.3',
  };
}
