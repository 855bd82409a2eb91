/** Which addresses are told, kept and dialled first. */
import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, test } from 'vitest'
import { announced, byReach, isLoopback, parseAddress, peerIdIn } from '../../../agent/mesh/addresses.ts'

const PEER = '12D3KooWQws5HgsbpXoUPGzrg2PvDqYSyxuUorGy9kGdQTZboGus'

describe('addresses', () => {
  test('loopback and link-local addresses are told only where there is nothing else', () => {
    const told = (...texts: string[]) => announced(texts.map((text) => multiaddr(text))).map(String)
    expect(told('/ip4/127.0.0.1/tcp/1', '/ip4/192.168.1.2/tcp/1', '/ip6/::1/tcp/1', '/ip6/fe80::1/tcp/1')).toEqual([
      '/ip4/192.168.1.2/tcp/1',
    ])
    expect(told('/ip4/127.0.0.1/tcp/1', '/ip6/::1/tcp/1')).toEqual(['/ip4/127.0.0.1/tcp/1', '/ip6/::1/tcp/1'])
    expect(told()).toEqual([])
  })

  test('all of 127/8 and ::1 is loopback', () => {
    expect(isLoopback(multiaddr('/ip4/127.9.9.9/tcp/1'))).toBe(true)
    expect(isLoopback(multiaddr('/ip6/::1/tcp/1'))).toBe(true)
    expect(isLoopback(multiaddr('/ip4/128.0.0.1/tcp/1'))).toBe(false)
    expect(isLoopback(multiaddr('/dns4/localhost/tcp/1'))).toBe(false)
  })

  test('public addresses are dialled before private ones of other networks, loopback last', () => {
    const sorted = ['/ip4/127.0.0.1/tcp/1', '/ip4/10.99.99.99/tcp/1', '/ip4/45.10.0.1/tcp/1']
      .map((text) => ({ multiaddr: multiaddr(text), isCertified: false }))
      .sort(byReach())
      .map(({ multiaddr }) => multiaddr.toString())
    expect(sorted.at(-1)).toBe('/ip4/127.0.0.1/tcp/1')
    expect(sorted.indexOf('/ip4/45.10.0.1/tcp/1')).toBeLessThan(2)
  })

  test('a peer id is read from an address, and a bad address is refused with what to write instead', () => {
    expect(peerIdIn(parseAddress(`/ip4/192.0.2.1/tcp/1/p2p/${PEER}`))).toBe(PEER)
    expect(peerIdIn(parseAddress('/dns4/host.example/tcp/1'))).toBeUndefined()
    expect(() => parseAddress('192.0.2.1:7477')).toThrow(expect.objectContaining({ code: 'usage' }))
  })
})
