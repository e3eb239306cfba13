// A mask is what was done to make it, in pixels of its picture: {points: [x, y, …], size, erase}, "invert", "clear"

// Stripes, which are seen on any picture
function stripes(context) {
	const tile = document.createElement("canvas");
	tile.width = tile.height = 12;
	const inner = tile.getContext("2d");
	inner.fillStyle = "#ff1fa0";
	inner.fillRect(0, 0, 12, 12);
	inner.fillStyle = "#fff";
	for (let place = 0; place < 12; place++) inner.fillRect(place, place, 3, 1), inner.fillRect(place - 12, place, 3, 1);
	return context.createPattern(tile, "repeat");
}

// Does what was done on a canvas that shows the picture's `width`
export function applyOps(canvas, width, ops) {
	const context = canvas.getContext("2d");
	const scale = canvas.width / width;
	const colour = stripes(context);
	for (const op of ops) {
		context.globalCompositeOperation = op === "invert" ? "xor" : op === "clear" || op.erase ? "destination-out" : "source-over";
		context.fillStyle = context.strokeStyle = colour;
		if (typeof op === "string") context.fillRect(0, 0, canvas.width, canvas.height);
		else stroke(context, op, scale);
	}
}

function stroke(context, { points, size }, scale) {
	context.lineWidth = size * scale;
	context.lineCap = context.lineJoin = "round";
	context.beginPath();
	// A line without any length would not be drawn
	context.moveTo(points[0] * scale + 0.01, points[1] * scale);
	for (let place = 0; place < points.length; place += 2) context.lineTo(points[place] * scale, points[place + 1] * scale);
	context.stroke();
}

// Sets a canvas to a picture's proportions, with sides of `most` pixels at most, and draws the mask on it
export function drawMask(canvas, { width, height, ops }, most) {
	const scale = Math.min(1, most / Math.max(width, height));
	canvas.width = Math.max(1, Math.round(width * scale)); // which empties it
	canvas.height = Math.max(1, Math.round(height * scale));
	applyOps(canvas, width, ops);
	return canvas;
}

// Returns how much of a mask is painted, from 0 to 1
export function coverage(source) {
	if (!source.ops?.length) return 0;
	const canvas = drawMask(document.createElement("canvas"), source, 128);
	const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
	let sum = 0;
	for (let place = 3; place < data.length; place += 4) sum += data[place];
	return sum / 255 / (data.length / 4);
}

// Returns the mask as a PNG file: white is painted anew, black stays
export async function maskFile(source, most) {
	const canvas = drawMask(document.createElement("canvas"), source, most);
	const context = canvas.getContext("2d");
	for (const [globalCompositeOperation, fillStyle] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
		Object.assign(context, { globalCompositeOperation, fillStyle }).fillRect(0, 0, canvas.width, canvas.height);
	}
	return new Promise((resolve) => canvas.toBlob(resolve));
}
