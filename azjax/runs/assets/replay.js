// The viewer of azjax's replay page. It reads the data that azjax/runs/replay.py put into the page, asks for nothing
// else, and draws with WebGL 2. From top to bottom: vectors, the episode, shapes, shaders, renderer, framing, camera,
// page. Vectors are arrays of 3, quaternions arrays of 4 (w x y z), matrices 16 numbers column by column; z is up.
(() => {
  "use strict";

  // ---- vectors -----------------------------------------------------------------------------------------------------

  const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
  const subtract = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
  const times = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const length = (a) => Math.hypot(a[0], a[1], a[2]);
  const unit = (a) => times(a, 1 / (length(a) || 1));
  const mix = (a, b, t) => a.map((x, i) => x + (b[i] - x) * t);
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

  const multiplyQuaternions = ([aw, ax, ay, az], [bw, bx, by, bz]) => [
    aw * bw - ax * bx - ay * by - az * bz,
    aw * bx + ax * bw + ay * bz - az * by,
    aw * by - ax * bz + ay * bw + az * bx,
    aw * bz + ax * by - ay * bx + az * bw,
  ];

  const rotate = (q, v) => {
    const axis = [q[1], q[2], q[3]];
    const turned = times(cross(axis, v), 2);
    return add(add(v, times(turned, q[0])), cross(axis, turned));
  };

  const slerp = (a, b, t) => {
    let cosine = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    const sign = cosine < 0 ? -1 : 1; // q and -q are the same rotation: take the nearer
    cosine *= sign;
    let [p, q] = [1 - t, t];
    if (cosine < 0.9995) {
      const angle = Math.acos(cosine);
      p = Math.sin((1 - t) * angle) / Math.sin(angle);
      q = Math.sin(t * angle) / Math.sin(angle);
    }
    const out = a.map((x, i) => p * x + sign * q * b[i]);
    const norm = Math.hypot(...out);
    return out.map((x) => x / norm);
  };

  const multiply = (a, b) => {
    const out = new Float32Array(16);
    for (let column = 0; column < 4; column++) {
      for (let row = 0; row < 4; row++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += a[4 * k + row] * b[4 * column + k];
        out[4 * column + row] = sum;
      }
    }
    return out;
  };

  // World to eye coordinates, for an eye at `eye` whose axes are right, up and (towards the viewer) back.
  const viewMatrix = (eye, right, up, back) => [
    right[0], up[0], back[0], 0,
    right[1], up[1], back[1], 0,
    right[2], up[2], back[2], 0,
    -dot(right, eye), -dot(up, eye), -dot(back, eye), 1,
  ];

  const perspective = (tanX, tanY, near, far) => [
    1 / tanX, 0, 0, 0,
    0, 1 / tanY, 0, 0,
    0, 0, (near + far) / (near - far), -1,
    0, 0, (2 * near * far) / (near - far), 0,
  ];

  // Scales a cube of half side `side` (and half depth `depth`) around the eye to the clip volume.
  const orthographic = (side, depth) => [
    1 / side, 0, 0, 0,
    0, 1 / side, 0, 0,
    0, 0, -1 / depth, 0,
    0, 0, 0, 1,
  ];

  // ---- the episode -------------------------------------------------------------------------------------------------

  const decode = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;

  // Unpacks the poses; replay.py says how they are packed.
  const readEpisode = (data) => {
    const links = data.links.length;
    const root = new Float32Array(decode(data.root));
    const offsets = new Int16Array(decode(data.offsets));
    const turns = new Int16Array(decode(data.rotations));
    const frames = root.length / 3;
    const pose = (frame, link) => {
      const at = frame * links + link;
      const position = [0, 1, 2].map(
        (k) => root[3 * frame + k] + data.middle[link][k] + (data.reach[link][k] * offsets[3 * at + k]) / 32767,
      );
      return { position, rotation: [0, 1, 2, 3].map((k) => turns[4 * at + k] / 32767) };
    };
    const posesOf = (frame) => data.links.map((_, link) => pose(frame, link));
    const last = data.steps - 1;

    // The stored frames around a time in steps, and how far it is from the first to the second. The last gap may be
    // shorter than the others.
    const around = (clock) => {
      const first = Math.min(Math.floor(clock / data.stride), frames - 1);
      const start = first * data.stride;
      const end = Math.min(start + data.stride, last);
      return [first, Math.min(first + 1, frames - 1), end > start ? clamp((clock - start) / (end - start), 0, 1) : 0];
    };

    const posesAt = (clock) => {
      const [a, b, t] = around(clock);
      const after = posesOf(b);
      return posesOf(a).map((from, link) => {
        const to = after[link];
        return { position: mix(from.position, to.position, t), rotation: slerp(from.rotation, to.rotation, t) };
      });
    };

    // Where the camera looks: the way of the first link, smoothed so that steps and hops do not shake the view, and
    // much more so in height.
    const smoothed = (seconds, axis) => {
      const sigma = seconds / (data.dt * data.stride);
      const reach = Math.ceil(2.5 * sigma);
      return Float32Array.from({ length: frames }, (_, centre) => {
        let [sum, weights] = [0, 0];
        for (let i = Math.max(0, centre - reach); i <= Math.min(frames - 1, centre + reach); i++) {
          const weight = Math.exp(-0.5 * ((i - centre) / sigma) ** 2);
          sum += weight * root[3 * i + axis];
          weights += weight;
        }
        return sum / weights;
      });
    };
    const way = [smoothed(0.25, 0), smoothed(0.25, 1), smoothed(1.5, 2)];
    const wayAt = (clock) => {
      const [a, b, t] = around(clock);
      return way.map((axis) => axis[a] + (axis[b] - axis[a]) * t);
    };

    const sums = data.returns && new Float32Array(decode(data.returns));
    return { ...data, frames, last, posesOf, posesAt, way, wayAt, sums };
  };

  const still = { position: [0, 0, 0], rotation: [1, 0, 0, 0] };

  // The pose of a geom in the world, given the poses of all links.
  const placed = (geom, poses) => {
    const link = geom.link < 0 ? still : poses[geom.link];
    return {
      position: add(link.position, rotate(link.rotation, geom.position)),
      rotation: multiplyQuaternions(link.rotation, geom.quaternion),
    };
  };

  // ---- shapes ------------------------------------------------------------------------------------------------------

  // Each shape is built once, at unit size: seven numbers per vertex (corner, normal, end) and triangles. A vertex is
  // drawn at corner * scale + end * halfLength * z, so that one round solid serves spheres, ellipsoids and capsules,
  // whose caps keep their form whatever the length.
  const SEGMENTS = 28;
  const RINGS = 8; // from a pole to the equator

  const strips = (rows) => {
    const vertices = [];
    const triangles = [];
    rows.forEach(({ radius, z, normalRadius, normalZ, end }, row) => {
      for (let i = 0; i <= SEGMENTS; i++) {
        const [c, s] = [Math.cos((2 * Math.PI * i) / SEGMENTS), Math.sin((2 * Math.PI * i) / SEGMENTS)];
        vertices.push(radius * c, radius * s, z, normalRadius * c, normalRadius * s, normalZ, end);
        if (row === 0 || i === SEGMENTS) continue;
        const a = (row - 1) * (SEGMENTS + 1) + i;
        const b = a + SEGMENTS + 1;
        triangles.push(a, b, a + 1, a + 1, b, b + 1);
      }
    });
    return { vertices, triangles };
  };

  const roundSolid = () => {
    const rows = [];
    for (const end of [1, -1]) {
      for (let ring = 0; ring <= RINGS; ring++) {
        const angle = ((end > 0 ? ring : RINGS + ring) / (2 * RINGS)) * Math.PI;
        const [radius, z] = [Math.sin(angle), Math.cos(angle)];
        rows.push({ radius, z, normalRadius: radius, normalZ: z, end });
      }
    }
    return strips(rows);
  };

  const cylinder = () =>
    strips([
      { radius: 0, z: 1, normalRadius: 0, normalZ: 1, end: 0 },
      { radius: 1, z: 1, normalRadius: 0, normalZ: 1, end: 0 },
      { radius: 1, z: 1, normalRadius: 1, normalZ: 0, end: 0 },
      { radius: 1, z: -1, normalRadius: 1, normalZ: 0, end: 0 },
      { radius: 1, z: -1, normalRadius: 0, normalZ: -1, end: 0 },
      { radius: 0, z: -1, normalRadius: 0, normalZ: -1, end: 0 },
    ]);

  const box = () => {
    const vertices = [];
    const triangles = [];
    for (let axis = 0; axis < 3; axis++) {
      for (const side of [1, -1]) {
        const first = vertices.length / 7;
        const normal = [0, 0, 0];
        normal[axis] = side;
        for (const [u, v] of [[-1, -1], [1, -1], [1, 1], [-1, 1]]) {
          const corner = [...normal];
          corner[(axis + 1) % 3] = u;
          corner[(axis + 2) % 3] = v;
          vertices.push(...corner, ...normal, 0);
        }
        triangles.push(first, first + 1, first + 2, first, first + 2, first + 3);
      }
    }
    return { vertices, triangles };
  };

  // Every triangle gets corners of its own, for robots' meshes are mostly machined parts with sharp edges.
  const faceted = (geom) => {
    const points = new Float32Array(decode(geom.vertices));
    const faces = new Uint32Array(decode(geom.faces));
    const point = (index) => [points[3 * index], points[3 * index + 1], points[3 * index + 2]];
    const vertices = [];
    for (let i = 0; i < faces.length; i += 3) {
      const [a, b, c] = [point(faces[i]), point(faces[i + 1]), point(faces[i + 2])];
      const normal = unit(cross(subtract(b, a), subtract(c, a)));
      for (const corner of [a, b, c]) vertices.push(...corner, ...normal, 0);
    }
    return { vertices, triangles: Array.from(faces, (_, i) => i) };
  };

  // Which built shape a geom uses, and the scale and half length it is drawn with.
  const FORMS = {
    sphere: ([r]) => ({ shape: "round", scale: [r, r, r], half: 0 }),
    capsule: ([r, half]) => ({ shape: "round", scale: [r, r, r], half }),
    ellipsoid: (size) => ({ shape: "round", scale: size, half: 0 }),
    cylinder: ([r, half]) => ({ shape: "cylinder", scale: [r, r, half], half: 0 }),
    box: (size) => ({ shape: "box", scale: size, half: 0 }),
    mesh: () => ({ scale: [1, 1, 1], half: 0 }),
  };

  // ---- shaders -----------------------------------------------------------------------------------------------------

  const HEAD = "#version 300 es\nprecision highp float;\nprecision highp sampler2DShadow;\n";

  const SHADOW = `
    uniform sampler2DShadow shadows;
    uniform mat4 toLight;
    // The share of the sun that reaches a point: 16 comparisons, each already blended over four texels.
    float sunlight(vec3 point) {
      vec3 place = (toLight * vec4(point, 1.0)).xyz * 0.5 + 0.5;
      if (any(lessThan(place.xy, vec2(0.0))) || any(greaterThan(place.xy, vec2(1.0)))) return 1.0;
      vec2 texel = 2.0 / vec2(textureSize(shadows, 0));
      float sum = 0.0;
      for (float x = -1.5; x < 2.0; x += 1.0)
        for (float y = -1.5; y < 2.0; y += 1.0)
          sum += texture(shadows, vec3(place.xy + texel * vec2(x, y), min(place.z, 1.0)));
      return sum / 16.0;
    }`;

  const SKY = `
    uniform vec3 horizon, zenith;
    vec3 sky(vec3 direction) { return mix(horizon, zenith, smoothstep(0.0, 0.7, direction.z)); }`;

  const TURN = `
    vec3 turn(vec4 q, vec3 v) { return v + 2.0 * cross(q.yzw, cross(q.yzw, v) + q.x * v); }`;

  const SOLID_VERTEX = `${HEAD}
    layout(location = 0) in vec3 corner;
    layout(location = 1) in vec3 normal;
    layout(location = 2) in float end;
    uniform mat4 toClip;
    uniform vec4 rotation;
    uniform vec3 translation, scale;
    uniform float halfLength;
    out vec3 place, facing;
    ${TURN}
    void main() {
      place = turn(rotation, corner * scale + vec3(0.0, 0.0, end * halfLength)) + translation;
      facing = turn(rotation, normal / scale);
      gl_Position = toClip * vec4(place, 1.0);
    }`;

  const SOLID_FRAGMENT = `${HEAD}
    in vec3 place, facing;
    uniform vec4 colour;
    uniform vec3 eye, sun, above, below, glow;
    uniform float bias;
    out vec4 pixel;
    ${SHADOW}
    void main() {
      vec3 toEye = normalize(eye - place);
      vec3 normal = normalize(facing);
      if (dot(normal, toEye) < 0.0) normal = -normal;  // the inside of a mesh that is open or wound the other way
      float direct = max(dot(normal, sun), 0.0);
      if (direct > 0.0) direct *= sunlight(place + bias * normal);
      float gloss = pow(max(dot(normal, normalize(sun + toEye)), 0.0), 40.0) * step(0.001, direct);
      float edge = pow(1.0 - max(dot(normal, toEye), 0.0), 3.0);
      vec3 light = mix(below, above, 0.5 + 0.5 * normal.z) + direct * vec3(0.9, 0.87, 0.82);
      vec3 shade = pow(colour.rgb, vec3(2.2)) * light + gloss * direct * 0.12 + edge * glow;
      pixel = vec4(pow(shade, vec3(1.0 / 2.2)), 1.0) * colour.a;
    }`;

  const EMPTY_FRAGMENT = `${HEAD}
    void main() {}`;

  const GROUND_VERTEX = `${HEAD}
    layout(location = 0) in vec2 corner;
    uniform mat4 toClip;
    uniform vec4 rotation;
    uniform vec3 translation;
    uniform vec2 middle;
    uniform float extent;
    out vec3 place;
    out vec2 spot;
    ${TURN}
    void main() {
      spot = middle + extent * corner;
      place = turn(rotation, vec3(spot, 0.0)) + translation;
      gl_Position = toClip * vec4(place, 1.0);
    }`;

  const GROUND_FRAGMENT = `${HEAD}
    in vec3 place;
    in vec2 spot;
    uniform vec3 eye, light, dark, dusk;
    uniform vec2 middle;
    uniform float extent, tile;
    uniform vec4 tint;
    out vec4 pixel;
    ${SHADOW}
    ${SKY}
    void main() {
      // A triangle wave that changes sign at each tile's edge, cut off at the width of a pixel: a sharp chequer nearby
      // that turns into plain grey, not into moire, where tiles get smaller than pixels.
      vec2 wave = abs(fract(spot / tile * 0.5) - 0.5) * 4.0 - 1.0;
      vec2 blur = max(fwidth(spot / tile) * 2.0, 1e-5);
      vec2 side = clamp(wave / blur, -1.0, 1.0);
      vec3 shade = mix(dark, light, 0.5 + 0.5 * side.x * side.y);
      shade = mix(shade, tint.rgb * (shade + 0.15), tint.a);
      shade *= mix(dusk, vec3(1.0), sunlight(place));
      float far = smoothstep(0.15, 1.0, length(spot - middle) / extent);
      pixel = vec4(mix(shade, sky(normalize(place - eye)), far), 1.0);
    }`;

  const SKY_VERTEX = `${HEAD}
    layout(location = 0) in vec2 corner;
    uniform vec3 forward, right, up;
    out vec3 direction;
    void main() {
      direction = forward + corner.x * right + corner.y * up;
      gl_Position = vec4(corner, 1.0, 1.0);
    }`;

  const SKY_FRAGMENT = `${HEAD}
    in vec3 direction;
    out vec4 pixel;
    ${SKY}
    void main() { pixel = vec4(sky(normalize(direction)), 1.0); }`;

  // ---- renderer ----------------------------------------------------------------------------------------------------

  const THEMES = {
    light: {
      horizon: [0.94, 0.955, 0.97], zenith: [0.78, 0.85, 0.92], light: [0.93, 0.945, 0.96], dark: [0.84, 0.865, 0.89],
      dusk: [0.62, 0.66, 0.72], above: [0.5, 0.53, 0.58], below: [0.24, 0.23, 0.22], glow: [0.03, 0.03, 0.03],
    },
    dark: {
      horizon: [0.105, 0.13, 0.16], zenith: [0.05, 0.065, 0.085], light: [0.225, 0.265, 0.31], dark: [0.165, 0.2, 0.24],
      dusk: [0.42, 0.44, 0.48], above: [0.34, 0.38, 0.44], below: [0.11, 0.12, 0.14], glow: [0.05, 0.06, 0.07],
    },
  };
  const SUN = unit([-0.35, -0.5, 1]);
  const SHADOW_SIZE = 1024;

  const program = (gl, vertex, fragment) => {
    const made = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
        throw new Error(gl.getShaderInfoLog(shader));
      }
    }
    gl.linkProgram(made);
    if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost()) {
      throw new Error(gl.getProgramInfoLog(made));
    }
    const uniforms = {};
    for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
      const { name, type } = gl.getActiveUniform(made, i);
      uniforms[name] = { type, location: gl.getUniformLocation(made, name) };
    }
    // Sets the uniforms that the program has; a value that it does not use is passed over.
    const set = (values) => {
      for (const [name, value] of Object.entries(values)) {
        if (!(name in uniforms)) continue;
        const { type, location } = uniforms[name];
        if (type === gl.FLOAT_MAT4) gl.uniformMatrix4fv(location, false, value);
        else if (type === gl.FLOAT_VEC4) gl.uniform4fv(location, value);
        else if (type === gl.FLOAT_VEC3) gl.uniform3fv(location, value);
        else if (type === gl.FLOAT_VEC2) gl.uniform2fv(location, value);
        else if (type === gl.FLOAT) gl.uniform1f(location, value);
        else gl.uniform1i(location, value);
      }
    };
    return (values) => {
      gl.useProgram(made);
      set(values);
      return set;
    };
  };

  const upload = (gl, { vertices, triangles }) => {
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(vertices), gl.STATIC_DRAW);
    [[3, 0], [3, 12], [1, 24]].forEach(([size, offset], location) => {
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, size, gl.FLOAT, false, 28, offset);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, new Uint32Array(triangles), gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    return { array, count: triangles.length };
  };

  const uploadSquare = (gl) => {
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 8, 0);
    gl.bindVertexArray(null);
    return array;
  };

  const shadowTarget = (gl) => {
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.DEPTH_COMPONENT24, SHADOW_SIZE, SHADOW_SIZE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_COMPARE_MODE, gl.COMPARE_REF_TO_TEXTURE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_COMPARE_FUNC, gl.LEQUAL);
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.TEXTURE_2D, texture, 0);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    return { texture, framebuffer };
  };

  // A plane with a hue of its own lends it to the tiles; grey and white ones take the colours of the theme.
  const tintOf = ([red, green, blue]) => {
    const chroma = Math.max(red, green, blue) - Math.min(red, green, blue);
    return [red, green, blue, clamp(3 * chroma, 0, 0.8)];
  };

  const createRenderer = (gl, geoms, floors) => {
    const solid = program(gl, SOLID_VERTEX, SOLID_FRAGMENT);
    const silhouette = program(gl, SOLID_VERTEX, EMPTY_FRAGMENT);
    const ground = program(gl, GROUND_VERTEX, GROUND_FRAGMENT);
    const backdrop = program(gl, SKY_VERTEX, SKY_FRAGMENT);
    const square = uploadSquare(gl);
    const shadow = shadowTarget(gl);
    const shapes = { round: upload(gl, roundSolid()), cylinder: upload(gl, cylinder()), box: upload(gl, box()) };
    const solids = geoms.map((geom) => {
      const { shape, scale, half } = FORMS[geom.kind](geom.size);
      if (geom.kind !== "mesh") return { geom, scale, half, shape: shapes[shape] };
      const owner = geom.same_mesh_as ?? geom.index; // a geom that comes earlier, so its mesh is there already
      shapes[owner] ??= upload(gl, faceted(geom));
      return { geom, scale, half, shape: shapes[owner] };
    });

    const drawSolids = (set, list, poses) => {
      for (const { geom, scale, half, shape } of list) {
        const { position, rotation } = placed(geom, poses);
        set({ translation: position, rotation, scale, halfLength: half, colour: geom.rgba });
        gl.bindVertexArray(shape.array);
        gl.drawElements(gl.TRIANGLES, shape.count, gl.UNSIGNED_INT, 0);
      }
    };

    // The sun's view of the robot: a square of half side `radius` around it, moved in whole texels so that the edges
    // of shadows do not flicker while it walks.
    const lightMatrix = (centre, radius) => {
      const right = unit(cross([0, 0, 1], SUN));
      const up = cross(SUN, right);
      const texel = (2 * radius) / SHADOW_SIZE;
      const snap = (axis) => Math.round(dot(centre, axis) / texel) * texel;
      const eye = add(add(times(right, snap(right)), times(up, snap(up))), times(SUN, dot(centre, SUN)));
      return multiply(orthographic(radius, 4 * radius), viewMatrix(eye, right, up, SUN));
    };

    const draw = ({ poses, camera, focus, radius, tile, reach, theme, width, height }) => {
      const toLight = lightMatrix(focus, radius);
      const opaque = solids.filter(({ geom }) => geom.rgba[3] >= 1);
      const clear = solids.filter(({ geom }) => geom.rgba[3] < 1);

      gl.bindFramebuffer(gl.FRAMEBUFFER, shadow.framebuffer);
      gl.viewport(0, 0, SHADOW_SIZE, SHADOW_SIZE);
      gl.enable(gl.DEPTH_TEST);
      gl.depthFunc(gl.LEQUAL); // the backdrop lies exactly on the far plane
      gl.depthMask(true);
      gl.disable(gl.BLEND);
      gl.clear(gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.POLYGON_OFFSET_FILL);
      gl.polygonOffset(2, 4);
      drawSolids(silhouette({ toClip: toLight }), opaque, poses);
      gl.disable(gl.POLYGON_OFFSET_FILL);

      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.bindTexture(gl.TEXTURE_2D, shadow.texture);

      gl.depthMask(false);
      const { forward, tanX, tanY } = camera;
      backdrop({ ...theme, forward, right: times(camera.right, tanX), up: times(camera.up, tanY) });
      gl.bindVertexArray(square);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
      gl.depthMask(true);

      const { toClip, eye } = camera;
      const shared = { ...theme, toClip, eye, toLight, shadows: 0, sun: SUN, bias: (3 * radius) / SHADOW_SIZE };
      const setGround = ground({ ...shared, extent: reach, tile });
      for (const floor of floors) {
        const { position, rotation } = placed(floor, poses);
        const [w, x, y, z] = rotation;
        const local = rotate([w, -x, -y, -z], subtract(camera.centre, position));
        setGround({ translation: position, rotation, middle: local.slice(0, 2), tint: tintOf(floor.rgba) });
        gl.bindVertexArray(square);
        gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
      }

      const setSolid = solid(shared);
      drawSolids(setSolid, opaque, poses);
      if (clear.length > 0) {
        gl.enable(gl.BLEND);
        gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
        gl.depthMask(false);
        const away = ({ geom }) => -length(subtract(placed(geom, poses).position, camera.eye));
        drawSolids(setSolid, clear.sort((a, b) => away(a) - away(b)), poses);
        gl.depthMask(true);
      }
      gl.bindVertexArray(null);
    };
    return { draw };
  };

  // ---- framing -----------------------------------------------------------------------------------------------------

  // Half the sides of the smallest upright box around a geom.
  const halfBox = (geom, rotation) => {
    const [r, half] = geom.size;
    const local = { sphere: [r, r, r], capsule: [0, 0, half], cylinder: [r, r, half] }[geom.kind] ?? geom.size;
    if (geom.kind === "sphere") return local;
    const axes = [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map((axis) => rotate(rotation, axis));
    const sides = [0, 1, 2].map((k) => axes.reduce((sum, axis, i) => sum + Math.abs(axis[k]) * local[i], 0));
    return geom.kind === "capsule" ? sides.map((side) => side + r) : sides;
  };

  // The box around some geoms in some frames, each shifted by -origin(frame). One frame in twenty may stick out, so
  // that a single wild moment does not make everything else small. What is sunk into the floor does not count.
  const boxAround = (geoms, frames, floor, origin) => {
    const lows = [];
    const highs = [];
    for (const { poses, at } of frames) {
      const low = [Infinity, Infinity, Infinity];
      const high = [-Infinity, -Infinity, -Infinity];
      for (const geom of geoms) {
        const { position, rotation } = placed(geom, poses);
        const half = halfBox(geom, rotation);
        const from = origin(at);
        for (let k = 0; k < 3; k++) {
          const top = position[k] + half[k];
          const bottom = k === 2 && top > floor ? Math.max(position[k] - half[k], floor) : position[k] - half[k];
          low[k] = Math.min(low[k], bottom - from[k]);
          high[k] = Math.max(high[k], top - from[k]);
        }
      }
      lows.push(low);
      highs.push(high);
    }
    const pick = (list, k, share) => list.map((v) => v[k]).sort((a, b) => a - b)[Math.round(share * (list.length - 1))];
    const low = [0, 1, 2].map((k) => pick(lows, k, 0.05));
    const high = [0, 1, 2].map((k) => pick(highs, k, 0.95));
    return { low, high, centre: mix(low, high, 0.5), half: times(subtract(high, low), 0.5) };
  };

  // The largest of 1, 2, 5, 10, ... (or a tenth, a hundredth, ...) that is not above x.
  const roundDown = (x) => {
    const power = 10 ** Math.floor(Math.log10(x));
    return power * (x >= 5 * power ? 5 : x >= 2 * power ? 2 : 1);
  };

  // Decides what the first view shows. A robot that travels is framed alone, and the camera goes with it. One that
  // lives on a fixed stage (a rail, the walls of a table) is framed together with the stage, and the camera rests.
  const frameScene = (episode) => {
    const solids = episode.geoms.filter((geom) => geom.kind !== "plane");
    const moving = solids.filter((geom) => geom.link >= 0);
    const fixed = solids.filter((geom) => geom.link < 0);
    const floors = episode.geoms.filter((geom) => geom.kind === "plane");
    const count = Math.min(episode.frames, 60);
    const frames = Array.from({ length: count }, (_, i) => {
      const at = count > 1 ? Math.round((i * (episode.frames - 1)) / (count - 1)) : 0;
      return { at, poses: episode.posesOf(at) };
    });
    const visible = moving.length > 0 ? moving : solids;
    const floor = Math.max(...floors.map((plane) => (plane.link < 0 ? plane.position[2] : -Infinity)));
    const travelling = boxAround(visible, frames, floor, (at) => episode.way.map((axis) => axis[at]));
    const all = boxAround([...visible, ...fixed], frames, floor, () => [0, 0, 0]);
    const stage = fixed.length > 0 && Math.max(...all.half) <= 4 * Math.max(...travelling.half);
    const box = stage ? all : travelling;
    const radius = length(box.half);
    if (floors.length === 0) {
      // Nothing to stand on: a floor somewhat below shows which way is up.
      const bottom = all.low[2] - 0.3 * radius;
      floors.push({ link: -1, position: [0, 0, bottom], quaternion: [1, 0, 0, 0], rgba: [0.5, 0.5, 0.5, 1] });
    }
    const flat = box.half[2] < 0.35 * Math.max(box.half[0], box.half[1]);
    return {
      solids, floors, stage, box, radius,
      tile: roundDown(0.5 * radius),
      yaw: (-68 * Math.PI) / 180, // from the side, since most robots run along x, and a little from the front
      pitch: ((flat ? 52 : 17) * Math.PI) / 180,
    };
  };

  // ---- camera ------------------------------------------------------------------------------------------------------

  const TAN_Y = Math.tan((19 * Math.PI) / 180);

  const createCamera = (episode, framing) => {
    const first = { yaw: framing.yaw, pitch: framing.pitch, zoom: 1, pan: [0, 0, 0], follow: !framing.stage };
    const state = { ...first, lag: [0, 0, 0], rest: null };
    const middle = framing.stage ? subtract(framing.box.centre, episode.wayAt(0)) : framing.box.centre;
    const lowest = Math.min(...framing.floors.filter((floor) => floor.link < 0).map((floor) => floor.position[2]));

    const axes = (yaw, pitch) => {
      const back = [Math.cos(pitch) * Math.cos(yaw), Math.cos(pitch) * Math.sin(yaw), Math.sin(pitch)];
      const right = [-Math.sin(yaw), Math.cos(yaw), 0];
      return { back, right, up: cross(back, right) };
    };

    // The distance from which the whole box is in view at the first angle, whatever the shape of the window.
    const fitDistance = (tanX, tanY) => {
      const { back, right, up } = axes(framing.yaw, framing.pitch);
      let distance = 0;
      for (const sx of [-1, 1]) for (const sy of [-1, 1]) for (const sz of [-1, 1]) {
        const corner = framing.box.half.map((side, k) => side * [sx, sy, sz][k]);
        const needed = Math.max(Math.abs(dot(corner, right)) / tanX, Math.abs(dot(corner, up)) / tanY);
        distance = Math.max(distance, needed + dot(corner, back));
      }
      return 1.2 * distance;
    };

    const target = (clock) => (state.follow ? add(add(episode.wayAt(clock), middle), state.lag) : state.rest);

    const view = (clock, width, height) => {
      const aspect = width / height;
      const [tanX, tanY] = [TAN_Y * aspect, TAN_Y];
      const distance = fitDistance(tanX, tanY) * state.zoom;
      const centre = add(target(clock), state.pan);
      const { back, right, up } = axes(state.yaw, state.pitch);
      const eye = add(centre, times(back, distance));
      eye[2] = Math.max(eye[2], lowest + 0.03 * framing.radius); // never below the floor
      const far = distance + 60 * framing.radius;
      const toClip = multiply(perspective(tanX, tanY, 0.02 * distance, far), viewMatrix(eye, right, up, back));
      return { eye, centre, right, up, forward: times(back, -1), tanX, tanY, distance, toClip };
    };

    const setFollow = (follow, clock) => {
      if (follow === state.follow) return;
      const before = target(clock);
      state.follow = follow;
      state.rest = follow ? null : before;
      // Glides back to the robot instead of jumping.
      state.lag = follow ? subtract(before, add(episode.wayAt(clock), middle)) : [0, 0, 0];
    };

    const reset = () => {
      Object.assign(state, first, { lag: [0, 0, 0], pan: [0, 0, 0] });
      state.rest = state.follow ? null : framing.box.centre;
    };

    reset();
    return {
      state, view, setFollow, reset,
      turn: (dx, dy) => {
        state.yaw -= dx * 0.008;
        state.pitch = clamp(state.pitch + dy * 0.006, -0.1, 1.55);
      },
      zoom: (factor) => {
        state.zoom = clamp(state.zoom * factor, 0.1, 10);
      },
      // By pixels of a window of the given height, so that what is under the finger stays there.
      move: (dx, dy, clock, width, height) => {
        const { right, up, distance, tanY } = view(clock, width, height);
        const pixel = (2 * distance * tanY) / height;
        state.pan = add(state.pan, add(times(right, -dx * pixel), times(up, dy * pixel)));
      },
      // Lets the glide go on; says whether there is still some way to go.
      settle: (seconds) => {
        if (length(state.lag) === 0) return false;
        state.lag = times(state.lag, Math.exp(-7 * seconds));
        if (length(state.lag) < 1e-3 * framing.radius) state.lag = [0, 0, 0];
        return true;
      },
    };
  };

  // ---- page --------------------------------------------------------------------------------------------------------

  const $ = (id) => document.getElementById(id);
  const number = (x, digits) =>
    x.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

  const showMessage = (text) => {
    $("message").textContent = text;
    $("message").hidden = false;
    $("canvas").hidden = true;
    document.querySelector("footer").hidden = true;
  };

  // Drag turns, right or shift drag and two fingers move, wheel and pinch zoom, a double click goes back.
  const listenToPointers = (canvas, camera, clock, changed) => {
    const held = new Map();
    const middle = () => {
      const points = [...held.values()];
      return [0, 1].map((k) => points.reduce((sum, point) => sum + point[k], 0) / points.length);
    };
    const spread = () => {
      const [a, b] = [...held.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held.has(event.pointerId)) return;
      const [x, y] = middle();
      const before = held.size === 2 ? spread() : 0;
      held.set(event.pointerId, [event.clientX, event.clientY]);
      const [dx, dy] = [middle()[0] - x, middle()[1] - y];
      if (held.size === 1 && !event.shiftKey && !(event.buttons & 6)) camera.turn(dx, dy);
      else camera.move(dx, dy, clock(), canvas.clientWidth, canvas.clientHeight);
      if (before > 0) camera.zoom(before / Math.max(spread(), 1));
      changed();
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => held.delete(event.pointerId));
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => {
      camera.reset();
      changed();
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
        // A pinch on a touchpad arrives as small turns of the wheel with ctrl held.
        camera.zoom(Math.exp(clamp(event.ctrlKey ? 6 * pixels : pixels, -240, 240) * 0.0015));
        changed();
      },
      { passive: false },
    );
  };

  // The reward of each step as a line over the scrub bar, averaged where there are more steps than a screen can show.
  const drawChart = (sums) => {
    const steps = sums.length - 1;
    const bins = Math.min(steps, 300);
    if (bins < 2) return;
    const means = Array.from({ length: bins }, (_, i) => {
      const [from, to] = [Math.floor((i * steps) / bins), Math.floor(((i + 1) * steps) / bins)];
      return (sums[to] - sums[from]) / (to - from);
    });
    const [low, high] = [Math.min(0, ...means), Math.max(0, ...means)];
    if (low === high) return;
    const y = (value) => (0.95 - (0.9 * (value - low)) / (high - low)).toFixed(4);
    const element = (name, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      $("chart").append(node);
    };
    element("line", { x1: 0, x2: 1, y1: y(0), y2: y(0) });
    const corners = means.map((value, i) => `${((i + 0.5) / bins).toFixed(4)} ${y(value)}`);
    element("path", { d: `M${corners.join("L")}` });
    $("chart").removeAttribute("hidden");
  };

  const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4];
  const PAUSE_AT_END = 1; // seconds, so that the last pose is seen before the episode starts over
  const SLOW = 0.06; // seconds per picture

  const main = () => {
    const canvas = $("canvas");
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: false });
    if (!gl) {
      showMessage("This replay needs WebGL 2, which this browser lacks or has switched off.");
      return;
    }
    const data = JSON.parse($("data").textContent);
    data.geoms.forEach((geom, index) => (geom.index = index));
    const episode = readEpisode(data);
    const framing = frameScene(episode);
    const camera = createCamera(episode, framing);
    let renderer = createRenderer(gl, framing.solids, framing.floors);

    const darkness = window.matchMedia("(prefers-color-scheme: dark)");
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const player = { clock: 0, playing: !calm && episode.last > 0, speed: 1, detail: 1, scrubbing: false, waited: 0 };
    let stale = true;
    const changed = () => (stale = true);

    const seek = (clock) => {
      player.clock = clamp(clock, 0, episode.last);
      player.waited = 0;
      changed();
    };
    const play = (playing) => {
      if (playing && player.clock >= episode.last) seek(0);
      player.playing = playing && episode.last > 0;
      changed();
    };
    const step = (by) => {
      play(false);
      seek((by > 0 ? Math.floor(player.clock) : Math.ceil(player.clock)) + by);
    };
    const setSpeed = (index) => {
      player.speed = SPEEDS[clamp(index, 0, SPEEDS.length - 1)];
      $("speed").value = String(player.speed);
      changed();
    };
    const setFollow = (follow) => {
      camera.setFollow(follow, player.clock);
      changed();
    };
    const resetView = () => {
      camera.reset();
      changed();
    };

    // The parts of the page that never change.
    const total = episode.last * episode.dt;
    const facts = [`${number(episode.last, 0)} steps`, `${number(total, 1)} s`];
    if (episode.sums) facts.unshift(`return ${number(episode.sums[episode.last], 1)}`);
    if (episode.terminated) facts.push("terminated");
    facts.push(framing.tile >= 1 ? `tiles ${framing.tile} m` : `tiles ${Number((100 * framing.tile).toPrecision(2))} cm`);
    facts.forEach((fact, i) => {
      const part = document.createElement("span");
      part.textContent = fact;
      $("summary").append(i > 0 ? " · " : "", part);
    });
    $("reward").hidden = !episode.sums;
    $("scrub").max = String(episode.last);
    if (episode.sums) drawChart(episode.sums);
    for (const speed of SPEEDS) $("speed").append(new Option(`${speed}×`, String(speed)));
    setSpeed(SPEEDS.indexOf(1));

    const showState = () => {
      const at = Math.floor(player.clock + 1e-6);
      $("time").textContent = `${number(player.clock * episode.dt, 2)} / ${number(total, 2)} s`;
      $("step").textContent = `step ${number(at, 0)}`;
      if (episode.sums) $("reward").textContent = `reward so far ${number(episode.sums[at], 1)}`;
      $("scrub").value = String(at);
      $("play").dataset.playing = String(player.playing);
      $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
      $("follow").setAttribute("aria-pressed", String(camera.state.follow));
    };

    const draw = () => {
      const ratio = Math.min(window.devicePixelRatio || 1, 2) * (player.playing ? player.detail : 1);
      const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
      const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      const view = camera.view(player.clock, width, height);
      const way = episode.wayAt(player.clock);
      renderer.draw({
        poses: episode.posesAt(player.clock),
        camera: view,
        focus: framing.stage ? framing.box.centre : add(way, framing.box.centre),
        radius: 1.15 * framing.radius,
        tile: framing.tile,
        reach: Math.max(14 * framing.radius, 3.5 * view.distance),
        theme: darkness.matches ? THEMES.dark : THEMES.light,
        width,
        height,
      });
      showState();
    };

    // For tests and the curious: what is on screen now.
    const report = { ready: false, frames: episode.frames, steps: episode.steps, posesAt: episode.posesAt };
    window.__replay = report;

    // Without a graphics card (a virtual machine, a remote desktop) pictures take long: after some slow ones in a row
    // the moving picture gets coarser, down to half. What stands still is always sharp.
    let slow = 0;
    const adaptDetail = (seconds) => {
      slow = player.playing && seconds > SLOW ? slow + 1 : 0;
      if (slow < 6 || player.detail <= 0.5) return;
      player.detail = Math.max(0.5, 0.7 * player.detail);
      slow = 0;
    };

    let before = performance.now();
    const tick = (now) => {
      adaptDetail((now - before) / 1000);
      const seconds = clamp((now - before) / 1000, 0, 0.1); // a tab that was hidden goes on where it stopped
      before = now;
      if (player.playing && !player.scrubbing) {
        if (player.clock < episode.last) seek(player.clock + (seconds * player.speed) / episode.dt);
        else if ((player.waited += seconds) > PAUSE_AT_END) seek(0);
      }
      if (camera.settle(seconds)) changed();
      if (stale && renderer) {
        stale = false;
        draw();
        const { playing, speed } = player;
        Object.assign(report, { ready: true, frame: player.clock, playing, speed, camera: { ...camera.state } });
      }
      requestAnimationFrame(tick);
    };

    listenToPointers(canvas, camera, () => player.clock, changed);
    new ResizeObserver(changed).observe(canvas);
    darkness.addEventListener("change", changed);
    $("play").addEventListener("click", () => play(!player.playing));
    $("follow").addEventListener("click", () => setFollow(!camera.state.follow));
    $("reset").addEventListener("click", resetView);
    $("speed").addEventListener("change", () => setSpeed(SPEEDS.indexOf(Number($("speed").value))));
    $("scrub").addEventListener("input", () => seek(Number($("scrub").value)));
    $("scrub").addEventListener("pointerdown", () => (player.scrubbing = true));
    for (const kind of ["pointerup", "pointercancel"]) window.addEventListener(kind, () => (player.scrubbing = false));
    // A button or list that was clicked must not swallow the next key; one reached with Tab keeps its own keys.
    for (const id of ["play", "follow", "reset"]) {
      $(id).addEventListener("click", (event) => event.detail > 0 && $(id).blur());
    }
    $("speed").addEventListener("change", () => $("speed").blur());

    const speedIndex = () => SPEEDS.indexOf(player.speed);
    const keys = {
      " ": () => play(!player.playing),
      ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
      ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
      ArrowUp: () => setSpeed(speedIndex() + 1),
      ArrowDown: () => setSpeed(speedIndex() - 1),
      Home: () => seek(0),
      End: () => seek(episode.last),
      f: () => setFollow(!camera.state.follow),
      r: resetView,
    };
    window.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      const focused = event.target instanceof Element && event.target.tagName;
      if (!action || focused === "SELECT" || (focused === "BUTTON" && event.key === " ")) return;
      event.preventDefault();
      action(event);
    });

    // A phone may take the graphics card away from a page in the background and give it back later.
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      renderer = null;
    });
    canvas.addEventListener("webglcontextrestored", () => {
      renderer = createRenderer(gl, framing.solids, framing.floors);
      changed();
    });
    requestAnimationFrame(tick);
  };

  try {
    main();
  } catch (error) {
    console.error(error);
    showMessage(`This replay cannot be shown: ${error.message}`);
  }
})();
