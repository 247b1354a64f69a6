// Return the texts with a contrast below 4.5 : 1 (WCAG 2.2, 1.4.3), from the color of an element and its background.
(() => {
    const rgba = (color) => {
        const context = document.createElement('canvas').getContext('2d');
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const blend = ([r, g, b, a], below) => [r, g, b].map((value, i) => (value * a + below[i] * (255 - a)) / 255);
    const background = (element) => {
        if (!element) return rgba(getComputedStyle(document.documentElement).getPropertyValue('--page')).slice(0, 3);
        const color = rgba(getComputedStyle(element).backgroundColor);
        return color[3] === 255 ? color.slice(0, 3) : blend(color, background(element.parentElement));
    };
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((value) => linear(value / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const lowContrast = [];
    for (const element of document.querySelectorAll('main *')) {
        const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
        if (!texts.length || !element.checkVisibility({ visibilityProperty: true })) continue;
        if (element.closest('svg, :disabled')) continue;
        const below = background(element);
        const { color } = getComputedStyle(element);
        const [lighter, darker] = [luminance(blend(rgba(color), below)), luminance(below)].sort((a, b) => b - a);
        if ((lighter + 0.05) / (darker + 0.05) < 4.5) lowContrast.push(`${texts[0].data.trim()}: ${color} on ${below}`);
    }
    return lowContrast;
})()
