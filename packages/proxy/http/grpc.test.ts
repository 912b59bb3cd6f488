import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { RequestHead } from '../message/request-head.ts';
import { encodeGrpcMessage, grpcStatusOfHttp, grpcTimeoutMs, httpStatusOfGrpc, isGrpcRequest } from './grpc.ts';

function headWith(name: string, value: string): RequestHead {
  const head = new RequestHead();
  head.headers.add(name, value);
  return head;
}

describe('gRPC over HTTP', () => {
  it('knows its content types, and leaves gRPC-Web and others alone', () => {
    for (const type of ['application/grpc', 'application/grpc+proto', 'application/grpc;charset=x', 'application/grpc+json'])
      assert.equal(isGrpcRequest(headWith('content-type', type)), true, type);
    for (const type of ['application/grpc-web', 'application/grpcx', 'application/json', 'text/plain', ''])
      assert.equal(isGrpcRequest(headWith('content-type', type)), false, type);
    assert.equal(isGrpcRequest(new RequestHead()), false);
  });

  it('reads timeouts in every unit, and takes nothing for one that is none', () => {
    for (const [text, ms] of [
      ['1H', 3_600_000],
      ['2M', 120_000],
      ['3S', 3_000],
      ['250m', 250],
      ['1500u', 2],
      ['1n', 1],
      ['0m', 1],
      ['99999999H', 2 ** 31 - 1],
    ] as const)
      assert.equal(grpcTimeoutMs(headWith('grpc-timeout', text)), ms, text);
    for (const text of ['', '5', 'S', '1s', '123456789S', '-1S', '1.5S', '1 S']) assert.equal(grpcTimeoutMs(headWith('grpc-timeout', text)), undefined, text);
  });

  it('percent-encodes what a message may not hold as it is', () => {
    assert.equal(encodeGrpcMessage('no healthy upstream'), 'no healthy upstream');
    assert.equal(encodeGrpcMessage('100 % \u00fcber\r\nx'), '100 %25 %C3%BCber%0D%0Ax');
  });

  it('translates statuses both ways', () => {
    assert.deepEqual([200, 400, 401, 403, 404, 429, 502, 503, 504, 418].map(grpcStatusOfHttp), [2, 13, 16, 7, 12, 14, 14, 14, 14, 2]);
    assert.deepEqual([0, 3, 4, 5, 7, 8, 12, 13, 14, 16].map(httpStatusOfGrpc), [200, 400, 504, 404, 403, 429, 501, 500, 503, 401]);
  });
});
