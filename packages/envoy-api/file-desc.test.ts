import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { getOption } from '@bufbuild/protobuf';
import { AddressSchema } from './gen/envoy/config/core/v3/address_pb.js';
import { ListenerSchema, file_envoy_config_listener_v3_listener as listenerFile } from './gen/envoy/config/listener/v3/listener_pb.js';
import { TlsCertificateSchema } from './gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import { sensitive } from './gen/udpa/annotations/sensitive_pb.js';

describe('generated descriptors', () => {
  it('know the types of other files, and those files themselves', () => {
    assert.equal(ListenerSchema.field.address.message, AddressSchema);
    assert.ok(listenerFile.dependencies.includes(AddressSchema.file));
    assert.ok(AddressSchema.file.dependencies.length > 0);
  });

  it('still say which fields are secret, and nothing of the options that nobody reads', () => {
    assert.ok(getOption(TlsCertificateSchema.field.privateKey, sensitive));
    assert.ok(!getOption(TlsCertificateSchema.field.certificateChain, sensitive));
    assert.equal(AddressSchema.proto.options, undefined);
  });
});
