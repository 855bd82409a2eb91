/** What a report must not have in it is not in it, wherever it stood; and what helps still is. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Named, Redaction } from '../../../agent/cli/redaction.ts'

const PEER = '12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS'
const OTHER = '12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q'
const names: Named[] = [
  { kind: 'node', name: 'pear' },
  { kind: 'node', name: 'pear-tree' },
  { kind: 'network', name: 'home' },
  { kind: 'node', name: 'a' },
]
const plain = () => new Redaction({ names, withNames: false, home: '/home/ann' })

const SECRETS = [
  'https://ann:hunter22@registry.example.org/v2',
  'url=s3://x?token=hunter22&y=1',
  '{"password":"hunter22"}',
  "passphrase: 'hunter22'",
  'API_KEY=hunter22',
  'Authorization: Basic aHVudGVyMjI=hunter22',
  '"authorization":"Bearer hunter22hunter22"',
  'curl -H "Cookie: session=hunter22"',
  '-----BEGIN PRIVATE KEY-----\nhunter22\n-----END PRIVATE KEY-----',
  '-----BEGIN AGE ENCRYPTED FILE-----\nhunter22 cut off',
  'AGE-SECRET-KEY-1HUNTER22',
  'un1hunter22hunter22hunter22hunter22',
  'UN1HUNTER22-HUNTER22-HUNTER22-HUNTER22',
  '{\\"token\\":\\"hunter22\\"}',
]

describe('redaction', () => {
  it('leaves no secret, in text and in JSON', () => {
    for (const secret of SECRETS) {
      expect(plain().text(`before ${secret} after`), secret).not.toMatch(/hunter22/i)
      expect(JSON.stringify(plain().json({ message: secret, list: [secret] })), secret).not.toMatch(/hunter22/i)
    }
    expect(plain().json({ password: 'x', apiKey: 'y', invitationToken: 'z', name: 'ok' })).toEqual({
      password: '[secret]',
      apiKey: '[secret]',
      invitationToken: '[secret]',
      name: 'ok',
    })
  })

  it('leaves no key, however it is written', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 32, maxLength: 64 }), (bytes) => {
        const buffer = Buffer.from(bytes)
        const written = [buffer.toString('hex'), buffer.toString('base64'), buffer.toString('base64url')]
        return written.every((one) => {
          const shown = plain().text(`key ${one} end`)
          // What is left of it is too little to matter.
          return !shown.includes(one)
        })
      }),
    )
  })

  it('calls peers, content and hashes the same wherever they are, and different ones differently', () => {
    const redaction = plain()
    const line = redaction.text(
      `${PEER} dialled ${OTHER}; /p2p/${PEER} has bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy`,
    )
    expect(line).toBe('peer-1 dialled peer-2; /p2p/peer-1 has cid-1')
    expect(redaction.json({ peers: [{ peerId: OTHER }] })).toEqual({ peers: [{ peerId: 'peer-2' }] })
  })

  it('calls nodes, networks and services by what they are, within names too, and leaves other words alone', () => {
    const redaction = plain()
    expect(redaction.text('pear-tree and pear of home: web.pear.home.internal; a spear, homely; a pearl')).toBe(
      'node-2 and node-1 of network-1: web.node-1.network-1.internal; a spear, homely; a pearl',
    )
    expect(redaction.json({ name: 'a', list: ['home'], text: 'a day' })).toEqual({
      name: 'node-3',
      list: ['network-1'],
      text: 'a day',
    })
  })

  it('shortens addresses, and leaves loopback and times', () => {
    const redaction = plain()
    expect(redaction.text('/ip4/192.0.2.7/tcp/7477 10.1.2.3:80 127.0.0.1:7478 at 15:04:05, version 1.2.3')).toBe(
      '/ip4/192.0.x.x/tcp/7477 10.1.x.x:80 127.0.0.1:7478 at 15:04:05, version 1.2.3',
    )
    expect(redaction.text('/ip6/2001:db8:1:2::7/tcp/1 [fe80::1c2d:3e4f] ::1 2026-01-02T03:04:05.678Z')).toBe(
      '/ip6/2001:db8::x/tcp/1 [fe80::x] ::1 2026-01-02T03:04:05.678Z',
    )
  })

  it('keeps ids and names where that is wished, and still no secrets', () => {
    const redaction = new Redaction({ names, withNames: true })
    expect(redaction.text(`pear is ${PEER} at 192.0.2.7, password=hunter22`)).toBe(
      `pear is ${PEER} at 192.0.x.x, password=[secret]`,
    )
  })

  it('leaves metrics and paths as they are', () => {
    const kept = 'undernet_certificate_expiry_timestamp_seconds{network="lab"} 1\nlibp2p_kad_dht_routing_table_size 3'
    expect(plain().text(kept)).toBe(kept)
    expect(plain().text('/home/ann/.local/state/undernet/state.db')).toBe('~/.local/state/undernet/state.db')
  })

  it('ends quickly with any text', () => {
    fc.assert(
      fc.property(fc.uint16Array({ maxLength: 2_000 }), (codes) => {
        plain().text(String.fromCharCode(...codes))
      }),
      { numRuns: 30 },
    )
    const longMs = performance.now()
    plain().text(`${'password='.repeat(5_000)}${'a:'.repeat(20_000)}${'-----BEGIN '.repeat(2_000)}`)
    expect(performance.now() - longMs).toBeLessThan(5_000)
  })
})
