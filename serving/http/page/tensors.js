// The V2 protocol with binary tensors: a JSON header, then the bytes of the tensors.

// The body of an inference request and its headers: one image in, all outputs as binary tensors.
export function inferRequest(input, width, height, pixels, outputs) {
  const header = new TextEncoder().encode(JSON.stringify({
    inputs: [{
      name: input,
      datatype: "UINT8",
      shape: [1, height, width, 3],
      parameters: { binary_data_size: pixels.length },
    }],
    outputs: outputs.map((name) => ({ name, parameters: { binary_data: true } })),
  }));
  const headers = { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(header.length) };
  return { method: "POST", headers, body: new Blob([header, pixels]) };
}

export function readTensors(answer, headerLength) {
  const header = JSON.parse(new TextDecoder().decode(answer.slice(0, headerLength)));
  const tensors = {};
  let start = headerLength;
  for (const { name, parameters } of header.outputs) {
    const end = start + parameters.binary_data_size;
    tensors[name] = answer.slice(start, end); // copied, since floats have to begin at a multiple of 4
    start = end;
  }
  return tensors;
}

export function rgb(source) {
  const { data } = source.getContext("2d").getImageData(0, 0, source.width, source.height);
  const pixels = new Uint8Array((data.length / 4) * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    pixels[to++] = data[from];
    pixels[to++] = data[from + 1];
    pixels[to++] = data[from + 2];
  }
  return pixels;
}
