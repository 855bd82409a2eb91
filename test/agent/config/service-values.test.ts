/** How offers and forwards are written in the configuration. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { endpointIn, offerText, parseForward, parseOffer } from '../../../agent/config/service-values.ts'

describe('an offer in the configuration', () => {
  it('says what `agent service add` would', () => {
    expect(parseOffer('web=8080')).toEqual({
      name: 'web',
      host: '127.0.0.1',
      port: 8_080,
      proto: 'tcp',
      check: 'tcp',
      labels: {},
      weight: 1,
      proxyProtocol: false,
      network: undefined,
    })
    const full =
      'web=[::1]:80?proto=http&check=http:/health&label=tier:front&label=v=2&weight=0&network=home&proxy-protocol=yes'
    expect(parseOffer(full)).toEqual({
      name: 'web',
      host: '::1',
      port: 80,
      proto: 'http',
      check: 'http:/health',
      weight: 0,
      labels: { tier: 'front', v: '2' },
      proxyProtocol: true,
      network: 'home',
    })
    expect(parseOffer('dns=192.0.2.1:53?proto=udp').check).toBe('none')
  })

  it.each([
    ['web', 'must be like'],
    ['web=', 'must be like'],
    ['Web=80', 'cannot be the name'],
    ['web=0', 'needs the port'],
    ['web=65536', 'no port'],
    ['web=a:b', 'no port'],
    ['web=80?check=ping', 'has the check'],
    ['web=80?proto=udp&check=tcp', 'for udp none only'],
    ['web=80?proto=sctp', 'has the protocol'],
    ['web=80?weight=1.5', 'has a weight'],
    ['web=80?label=x', 'no label'],
    ['web=80?wieght=1', 'has "wieght"'],
  ])('is refused as %s', (text, why) => {
    expect(() => offerText.read(text, '/')).toThrow(why)
  })
})

describe('a forward in the configuration', () => {
  it('says a service, a local port, and how it is used', () => {
    expect(parseForward('web.home.internal=8000')).toEqual({
      name: 'web.home.internal',
      host: '127.0.0.1',
      port: 8_000,
      proto: 'tcp',
      isSticky: false,
    })
    expect(parseForward('dns.pear.home=0.0.0.0:53?proto=udp&sticky=yes')).toMatchObject({
      proto: 'udp',
      isSticky: true,
    })
  })

  it.each(['a.b.c.d=80', 'web..home=80', 'web=80?network=home', '=80'])('is refused as %s', (text) => {
    expect(() => parseForward(text)).toThrow()
  })
})

it('is of any text one, or a mistake with a reason', () => {
  fc.assert(
    fc.property(fc.string(), (text) => {
      for (const parse of [parseOffer, parseForward, endpointIn]) {
        try {
          const { port } = parse(text)
          expect(port).toBeLessThanOrEqual(65_535)
        } catch (error) {
          expect((error as Error).message).toMatch(/^(has|must|needs)/)
        }
      }
    }),
  )
})
