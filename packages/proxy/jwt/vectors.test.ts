import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { readCompactToken } from './compact-token.ts';
import { KeySet } from './key-set.ts';

interface Vector {
  readonly from: string;
  readonly algorithm: string;
  readonly key: Readonly<Record<string, string>>;
  readonly token: string;
}

const joe = 'eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ';
const rsa = {
  kty: 'RSA',
  n: 'ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ',
  e: 'AQAB',
};

/** The examples of the standards themselves. */
const vectors: readonly Vector[] = [
  {
    from: 'RFC 7515, appendix A.1',
    algorithm: 'HS256',
    key: { kty: 'oct', k: 'AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow' },
    token: `eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.${joe}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk`,
  },
  {
    from: 'RFC 7515, appendix A.2',
    algorithm: 'RS256',
    key: rsa,
    token: `eyJhbGciOiJSUzI1NiJ9.${joe}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw`,
  },
  {
    from: 'RFC 7515, appendix A.3',
    algorithm: 'ES256',
    key: { kty: 'EC', crv: 'P-256', x: 'f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU', y: 'x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0' },
    token: `eyJhbGciOiJFUzI1NiJ9.${joe}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q`,
  },
  {
    from: 'RFC 7515, appendix A.4',
    algorithm: 'ES512',
    key: {
      kty: 'EC',
      crv: 'P-521',
      x: 'AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk',
      y: 'ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2',
    },
    token:
      'eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn',
  },
  {
    from: 'RFC 8037, appendix A.4',
    algorithm: 'EdDSA',
    key: { kty: 'OKP', crv: 'Ed25519', x: '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo' },
    token: 'eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg',
  },
];

const keysOf = (...keys: readonly object[]) => KeySet.read(JSON.stringify({ keys }));
/** As a token whose claims need not be JSON: the standards' are not all. */
const apart = (token: string, algorithm: string, signature = Buffer.from(token.split('.')[2]!, 'base64url')) => ({
  ...{ algorithm, keyId: undefined, header: {}, claims: {}, payload: '', signature },
  signed: Buffer.from(token.slice(0, token.lastIndexOf('.'))),
});

describe('signatures of tokens (JWS)', () => {
  for (const { from, algorithm, key, token } of vectors)
    it(`are good where the standard's example is: ${algorithm}, ${from}`, () => {
      const keys = keysOf(key);
      assert.equal(keys.verify(apart(token, algorithm)), 'good');
      const { signature } = apart(token, algorithm);
      for (let bit = 0; bit < signature.length * 8; bit += 37) {
        const changed = Buffer.from(signature);
        changed[bit >> 3]! ^= 1 << (bit & 7);
        assert.equal(keys.verify(apart(token, algorithm, changed)), 'bad', `bit ${bit}`);
      }
      const [head, payload, rest] = token.split('.') as [string, string, string];
      assert.equal(keys.verify(apart(`${head}.${payload}A.${rest}`, algorithm)), 'bad', 'of something else');
      for (const wrong of [Buffer.alloc(0), signature.subarray(1), Buffer.concat([signature, Buffer.of(0)]), Buffer.alloc(signature.length)])
        assert.equal(keys.verify(apart(token, algorithm, wrong)), 'bad', `${wrong.length} bytes`);
    });

  it('are not good by a key of another type or curve, nor by another algorithm with the same key', () => {
    for (const { algorithm, token } of vectors)
      for (const { key, algorithm: other } of vectors)
        if (other !== algorithm) assert.equal(keysOf(key).verify(apart(token, algorithm)), 'noKey', `${algorithm} by a key for ${other}`);
    const [, byRsa] = vectors as [Vector, Vector];
    for (const other of ['RS384', 'RS512', 'PS256', 'PS384', 'PS512']) assert.equal(keysOf(rsa).verify(apart(byRsa.token, other)), 'bad', other);
    for (const other of ['HS256', 'none', 'None', '', 'rs256', 'constructor', '__proto__'])
      assert.equal(keysOf(rsa).verify(apart(byRsa.token, other)), 'noKey', other);
    assert.equal(keysOf({ ...rsa, alg: 'PS256' }).verify(apart(byRsa.token, 'RS256')), 'noKey', 'a key is for what it says');
    assert.throws(() => keysOf({ ...rsa, use: 'enc' }), /none of its keys can be used/);
    assert.throws(() => keysOf({ ...rsa, key_ops: ['sign'] }), /none of its keys can be used/);
  });

  it('are not looked at in a token that is none: RFC 7515, appendix A.5 (unsecured), JSON forms, encrypted, critical extensions', () => {
    const encoded = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
    for (const text of [
      `eyJhbGciOiJub25lIn0.${joe}.`,
      `eyJhbGciOiJub25lIn0.${joe}.AAAA`,
      JSON.stringify({ payload: joe, protected: 'eyJhbGciOiJSUzI1NiJ9', signature: 'AAAA' }),
      `${encoded({ alg: 'RSA-OAEP', enc: 'A256GCM' })}.AAAA.AAAA.AAAA.AAAA`,
      `${encoded({ alg: 'RS256', crit: ['exp'], exp: 1 })}.${joe}.AAAA`,
      `${encoded({ alg: 'RS256', b64: false })}.${joe}.AAAA`,
      `${encoded({ alg: ['RS256'] })}.${joe}.AAAA`,
      `${encoded('{"alg":"RS256"')}.${joe}.AAAA`,
      `${encoded({ alg: 'RS256' })}.${encoded('[]')}.AAAA`,
      `${encoded({ alg: 'RS256' })}.${joe}=.AAAA`,
      `${encoded({ alg: 'RS256' })}. ${joe}.AAAA`,
      `${encoded({ alg: 'RS256' })}.${Buffer.from([0x22, 0xff, 0x22]).toString('base64url')}.AAAA`,
    ])
      assert.equal(readCompactToken(text), undefined, text);
  });
});
